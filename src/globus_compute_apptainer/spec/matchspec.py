"""Conda packages, one by one: match specs and channels. Pure.

What is accepted is the grammar that conda documents ("Package match
specifications"), without what would reach beyond the channels or stand for many
packages: no paths, no URLs of files, no globs in names, no regular expressions.
Accepted match specs come back in one normal form, which conda, mamba and rattler
read alike::

    [CHANNEL[/SUBDIR]::]NAME[ VERSION[ BUILD]][KEY="VALUE", …]

where an exact version always has ``==`` and a prefix always ``.*``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from globus_compute_apptainer.spec.refusal import Refusal

_LONGEST = 500

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SPEC = re.compile(
    r"(?:(?P<channel>[^\s\[\]<>=!~,|]+)::)?"
    r"(?P<name>[A-Za-z0-9_.-]+)"
    r"(?P<rest>[\s<>=!~][^\[\]]*)?"
    r"(?:\s*\[(?P<keys>[^\[\]]*)\])?"
)
_VERSION = r"(?:\d+!)?[0-9A-Za-z][0-9A-Za-z_.+]*?"
_CONSTRAINT = re.compile(
    rf"(?P<sign>==|!=|>=|<=|~=|=|>|<|)(?P<version>{_VERSION})(?P<prefix>\.?\*)?"
)
_BUILD = re.compile(r"[A-Za-z0-9_.+*]+")
_BUILD_NUMBER = re.compile(r"(==|!=|>=|<=|=|>|<|)([0-9]{1,9})")
_WITH_BUILD = re.compile(r"={0,2}(?P<version>[^\s<>=!~,|]+)=(?P<build>[^\s=]+)")
_KEY = re.compile(
    r"\s*(?P<key>[a-z0-9_]+)\s*=\s*(?:'(?P<a>[^'\"]*)'|\"(?P<b>[^'\"]*)\""
    r"|(?P<c>[^\s,'\"=]+))\s*(?P<end>,|$)"
)
_KEYS = ("version", "build", "build_number", "channel", "subdir", "md5", "sha256")
_SUBDIR = re.compile(r"noarch|(linux|osx|win|emscripten|wasi|zos)-[a-z0-9]+")
_MD5, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")

# Of normal forms: 3.10.*, ==3.10.4, <3.11,>=3.10 (as `conda env export` has it).
_MINOR = re.compile(r"(?:==)?(\d+\.\d+)(?:\.[0-9a-z.*]+)?(?: |\Z)")
_BETWEEN = re.compile(
    r"<(\d+)\.(\d+)(?:\.0a0)?,>=(\d+)\.(\d+)(?:\.[0-9a-z.]+)?(?: |\Z)"
)

_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_CHANNEL_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(.*)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_PATH = re.compile(r"(?:/[A-Za-z0-9_~+%-][A-Za-z0-9._~+%-]*)*")
_TOKEN = re.compile(r"/t/[^/]*")

ALIAS = "https://conda.anaconda.org/"
"""Where a channel that is a name lies, as conda has it."""

_OPTION = re.compile(r"(?:^|\s)(--?[A-Za-z][A-Za-z-]*)(?=[\s=]|$)")
_FILES = (".conda", ".tar.bz2", ".yml", ".yaml", ".txt")


@lru_cache(maxsize=1024)
def match_spec(entry: str) -> str:
    """The normal form of one match spec.

    :raises Refusal: not a match spec, or one that is not accepted here
    """
    _check_text(entry)
    found = _SPEC.fullmatch(entry)
    if found is None or not _NAME.fullmatch(found["name"]):
        raise Refusal("is not a conda match spec", _hint(entry))
    if found["name"].lower().endswith(_FILES):
        raise Refusal("is a file name, not a package", "give what the file holds")
    keys = _keys(found["keys"]) if found["keys"] is not None else {}
    version, build = _version_and_build((found["rest"] or "").strip())
    place, subdir = _place(found["channel"]) if found["channel"] else ("", "")
    place = channel(keys.pop("channel")) if "channel" in keys else place
    subdir = keys.pop("subdir", subdir)
    version = _version(keys.pop("version")) if "version" in keys else version
    build = _build(keys.pop("build")) if "build" in keys else build
    if subdir and not place:
        keys["subdir"] = subdir
    words = [found["name"].lower(), version or ("*" if build else ""), build]
    extra = ", ".join(f'{key}="{value}"' for key, value in sorted(keys.items()))
    where = f"{place}/{subdir}" if place and subdir else place
    named = " ".join(word for word in words if word)
    return (f"{where}::" if where else "") + named + (f"[{extra}]" if extra else "")


def name_of(spec: str) -> str:
    """The package of a match spec in normal form."""
    return re.split(r"[ \[]", spec.rpartition("::")[2], maxsplit=1)[0]


def channel_of(spec: str) -> str:
    """The channel of a match spec in normal form; empty if it names none."""
    where = spec.rpartition("::")[0]
    head, _, tail = where.rpartition("/")
    return head if head and _SUBDIR.fullmatch(tail) else where


def minor_version(spec: str) -> str:
    """The minor version (``3.10``) to which a normal form pins; empty if to none."""
    version = spec.rpartition("::")[2].partition("[")[0].partition(" ")[2]
    exact = _MINOR.match(version)
    if exact:
        return exact[1]
    between = _BETWEEN.match(version)
    if between and between[1] == between[3] and int(between[2]) == int(between[4]) + 1:
        return f"{between[3]}.{between[4]}"
    return ""


@lru_cache(maxsize=256)
def channel(entry: str) -> str:
    """The normal form of a channel: a name, perhaps with labels, or an http(s) URL.

    A URL at conda's own alias is the name that stands for it, so that policy sees
    one form only.

    :raises Refusal: anything else
    """
    if len(entry) > _LONGEST:
        raise Refusal(f"is longer than {_LONGEST} characters")
    if "://" in entry:
        url = _channel_url(entry)
        rest = url.removeprefix(ALIAS)
        return rest if rest != url and _is_name(rest) else url
    if entry.startswith(("/", "./", "../", "~")):
        hint = "the endpoint's administrator names local channels"
        raise Refusal("is a path, not a channel", hint)
    if not _is_name(entry):
        raise Refusal("is not a channel", "a name such as conda-forge, or a URL")
    return entry


def _is_name(text: str) -> bool:
    return all(_CHANNEL_NAME.fullmatch(part) for part in text.split("/"))


def _channel_url(entry: str) -> str:
    found = _CHANNEL_URL.fullmatch(entry)
    if found is None or found[4]:
        raise Refusal("is not the URL of a channel", "write https://HOST/CHANNEL")
    scheme, host, path = found[1].lower(), found[2], found[3].rstrip("/")
    if scheme not in ("https", "http"):
        hint = "the endpoint's administrator names channels of other kinds"
        raise Refusal(f"is a {scheme}:// URL; only https and http work", hint)
    if "@" in host or _TOKEN.search(path):
        hint = "specs are logged; ask the administrator for access to that channel"
        raise Refusal("has credentials in its URL, which is not accepted", hint)
    if not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
        raise Refusal("is a URL with unusual characters", "percent-encode them")
    return f"{scheme}://{host.lower()}{path}" + ("" if path else "/")


def _check_text(entry: str) -> None:
    if len(entry) > _LONGEST:
        raise Refusal(f"is longer than {_LONGEST} characters")
    if not entry.isascii() or not entry.isprintable():
        raise Refusal("has a character that no match spec needs")
    option = _OPTION.search(entry)
    if option:
        hint = 'write {"channels": ["…"], "dependencies": ["…"]}'
        hint = hint if option[1] in ("-c", "--channel") else "only names are accepted"
        raise Refusal(f"has the option {option[1]}, which is not accepted", hint)
    if entry.startswith((".", "/", "~")):
        raise Refusal("is a path, not a package", "paths here mean nothing there")
    if "://" in entry and "::" not in entry:
        raise Refusal("is a URL, not a package", "write CHANNEL::NAME, or use pip")


def _place(written: str) -> tuple[str, str]:
    """Channel and subdirectory, which may follow the channel's name."""
    head, _, tail = written.rpartition("/")
    if head and _SUBDIR.fullmatch(tail):
        return channel(head), tail
    return channel(written), ""


def _version_and_build(rest: str) -> tuple[str, str]:
    """From what follows the name: ``=1.2``, `` >=1,<2 py_0``, ``==1.2=py_0``, …"""
    rest = re.sub(r"\s*([,|])\s*", r"\1", re.sub(r"([<>=!~])\s+", r"\1", rest))
    exact = _WITH_BUILD.fullmatch(rest)
    if exact:
        return _version(exact["version"]), _build(exact["build"])
    words = rest.split()
    if len(words) > 2:
        raise Refusal("has more than a version and a build", "one package per entry")
    version = _version(words[0]) if words else ""
    return version, _build(words[1]) if len(words) > 1 else ""


def _version(text: str) -> str:
    """Alternatives (``|``) of constraints (``,``), sorted; empty for any version."""
    text = re.sub(r"\s+", "", text)
    either = set()
    for part in text.split("|"):
        both = {_constraint(one) for one in part.split(",")} - {"*"}
        either.add(",".join(sorted(both)) or "*")
    return "" if "*" in either else "|".join(sorted(either))


def _constraint(text: str) -> str:
    if text in ("*", "=*", "==*"):
        return "*"
    found = _CONSTRAINT.fullmatch(text)
    if found is None:
        raise Refusal("has a version that conda does not know", _version_hint(text))
    sign, version = found["sign"], found["version"].lower()
    if version.endswith((".", "+", "_")):
        raise Refusal("has a version that conda does not know")
    prefix = bool(found["prefix"]) or sign == "="
    if sign in ("", "=", "=="):
        return f"{version}.*" if prefix else f"=={version}"
    if sign == "~=" and (prefix or "." not in version):
        raise Refusal("has a version that conda does not know", "as in ~=1.2.3")
    return f"{sign}{version}" + (".*" if prefix and sign == "!=" else "")


def _build(text: str) -> str:
    if not _BUILD.fullmatch(text):
        hint = "letters, digits, _ . + and * only"
        raise Refusal("has a build that conda does not know", hint)
    return "" if text == "*" else text


def _keys(text: str) -> dict[str, str]:
    """What stands in brackets, each value checked."""
    found: dict[str, str] = {}
    at = 0
    while text[at:].strip():
        part = _KEY.match(text, at)
        if part is None:
            raise Refusal("has brackets that cannot be read", "[key='value', …]")
        key = "build" if part["key"] == "build_string" else part["key"]
        if key not in _KEYS:
            hint = "the keys are " + ", ".join(_KEYS)
            raise Refusal(f"has the key {key}, which is not accepted", hint)
        if key in found:
            raise Refusal(f"has the key {key} twice")
        found[key] = _key_value(
            key, (part["a"] or part["b"] or part["c"] or "").strip()
        )
        at = part.end()
    return found


def _key_value(key: str, value: str) -> str:
    shapes = {"subdir": _SUBDIR, "md5": _MD5, "sha256": _SHA256}
    if not value:
        raise Refusal(f"has an empty {key}")
    if key in ("md5", "sha256"):
        value = value.lower()
    if key in shapes and not shapes[key].fullmatch(value):
        raise Refusal(f"has a {key} that conda does not know")
    if key == "build_number":
        number = _BUILD_NUMBER.fullmatch(value.replace(" ", ""))
        if number is None:
            raise Refusal("has a build_number that conda does not know")
        return (number[1] if number[1] not in ("", "=") else "==") + str(int(number[2]))
    return value


def _version_hint(text: str) -> str:
    if "(" in text or ")" in text:
        return "write it without parentheses: a,b|c means (a and b) or c"
    if text.startswith("^"):
        return "regular expressions are not accepted"
    return "as in =1.2, >=1.2,<2 or ==1.2.3"


def _hint(entry: str) -> str:
    if re.match(r"[\w.-]*[*^]", entry):
        return "names are written out"
    if re.fullmatch(r"[A-Za-z0-9._-]+(\s*,\s*[A-Za-z0-9._-]+)+", entry):
        return "one package per entry or line"
    return "as in numpy, numpy=1.26, numpy>=1.22,<2 or conda-forge::numpy"
