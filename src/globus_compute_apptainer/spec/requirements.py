"""Python packages, as the field ``pip`` names them: PEP 508 requirements. Pure.

Accepted requirements come back in one normal form that holds nothing but the
characters of :data:`_ALLOWED`; so they can be written to a requirements file, one per
line, and mean there what was checked here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from globus_compute_apptainer.spec.refusal import Refusal

if TYPE_CHECKING:
    from packaging.markers import Marker
    from packaging.specifiers import Specifier

_LONGEST = 1000
_MOST_PARENTHESES = 20  # the parser of markers is recursive

# No '$' (uv expands ${NAME}), no backslash (markers would read escapes), no control.
_ALLOWED = re.compile(r"""[A-Za-z0-9 \t._+*!<>=~()\[\],;:@/?#&%"'-]*""")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_OPTION = re.compile(r"(?:^|\s)(--?[A-Za-z][A-Za-z-]*)")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.*+!_-]*")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^ ]*)")
_URL_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_URL_REST = re.compile(r"/[A-Za-z0-9._~:/?#@!&*+,=%-]+")
_MARKER = re.compile(r'[A-Za-z0-9 .,_+*!<>=~()"/:@-]+')
_EXTRA = re.compile(r"extra|dependency_groups")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_FILES = (".whl", ".tar.gz", ".zip", ".txt", ".toml", ".in")

_OPTION_HINTS = {
    ("-r", "--requirement"): "give the contents of that file instead",
    ("-c", "--constraint"): "write the pins into the requirements",
    ("-e", "--editable"): "give a released package, or an https:// archive",
    ("--hash",): "pin the version with ==",
    (
        "-i",
        "--index-url",
        "--extra-index-url",
        "-f",
        "--find-links",
        "--trusted-host",
        "--no-index",
    ): "the endpoint's administrator chooses the package index",
}


@lru_cache(maxsize=1024)
def requirement(entry: str) -> str:
    """The normal form of one PEP 508 requirement.

    Names and extras are normalised (PEP 503, PEP 685) and extras and specifiers
    sorted; versions are kept as written, in lower case. Markers keep their order.

    :raises Refusal: not a requirement, an option, a path, or a URL that is not plain
        ``http(s)`` or holds credentials
    """
    _check_text(entry)
    # Imported here: clients may lack it, and it costs 20 ms that most starts can save.
    from packaging.requirements import (  # noqa: PLC0415
        InvalidRequirement,
        Requirement,
    )
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    try:
        parsed = Requirement(entry)
    except InvalidRequirement as error:
        # Old releases of packaging quote the URL here, with its credentials.
        why = str(error).partition("\n")[0].partition(": ")[0].rstrip(".")
        raise Refusal(f"is not a PEP 508 requirement: {why}", _hint(entry)) from None
    # packaging is more lenient than PEP 508.
    if not all(map(_NAME.fullmatch, (parsed.name, *parsed.extras))):
        raise Refusal("has a name that no package or extra can have", _hint(entry))
    if parsed.name.lower().endswith(_FILES):
        raise Refusal("is a file name, not a package", "give what the file holds")
    extras = ",".join(sorted({canonicalize_name(extra) for extra in parsed.extras}))
    return "".join(
        [
            canonicalize_name(parsed.name),
            f"[{extras}]" if extras else "",
            ",".join(sorted({_specifier(one) for one in parsed.specifier})),
            f" @ {_url(parsed.url)}" if parsed.url else "",
            _marker(entry, parsed.marker) if parsed.marker else "",
        ]
    )


def _check_text(entry: str) -> None:
    if len(entry) > _LONGEST:
        raise Refusal(f"is longer than {_LONGEST} characters")
    option = _OPTION.search(entry.partition(";")[0])
    if option:
        name = option[1]
        hints = (hint for names, hint in _OPTION_HINTS.items() if name in names)
        hint = next(hints, "only requirements are accepted")
        raise Refusal(f"has the option {name}, which is not accepted", hint)
    if entry.startswith((".", "/", "~")):
        raise Refusal("is a path, not a package", "paths here mean nothing there")
    if not _ALLOWED.fullmatch(entry):
        rest = _ALLOWED.sub("", entry, count=1)
        raise Refusal(f"has the character {rest[0]!r}, which no requirement needs")
    if entry.count("(") > _MOST_PARENTHESES:
        raise Refusal("has too many parentheses")


def _specifier(one: Specifier) -> str:
    version = one.version if one.operator == "===" else one.version.lower()
    if not _VERSION.fullmatch(version):
        raise Refusal("has a version that PEP 440 does not know")
    return f"{one.operator}{version}"


def _url(url: str) -> str:
    parts = _URL.fullmatch(url)
    if parts is None:
        raise Refusal("has a URL that is not complete", "write https://HOST/FILE")
    scheme, host, rest = parts[1].lower(), parts[2], parts[3]
    if scheme not in ("https", "http"):
        hint = "use an https:// archive, as git hosts have them for every commit"
        raise Refusal(f"has a {scheme}:// URL; only https and http work", hint)
    if "@" in host:
        hint = "specs are logged; ask the administrator for access to that index"
        raise Refusal("has credentials in its URL, which is not accepted", hint)
    if not _URL_HOST.fullmatch(host) or not _URL_REST.fullmatch(rest):
        raise Refusal("has a URL with unusual characters", "percent-encode them")
    return f"{scheme}://{host.lower()}{rest}"


def _marker(entry: str, marker: Marker) -> str:
    # The normal form has double quotes only, so a value must hold neither kind.
    for quoted in _QUOTED.findall(entry):
        if '"' in quoted[1:-1] or "'" in quoted[1:-1]:
            raise Refusal("has a marker with a quote inside a value")
    words = str(marker)
    if _EXTRA.search(_QUOTED.sub("", words)):
        hint = "write NAME[EXTRA], or leave the marker out"
        raise Refusal("has a marker on extras, which is never true here", hint)
    if not _MARKER.fullmatch(words):
        raise Refusal("has a marker with unusual characters")
    return f" ; {words}"


def _hint(entry: str) -> str:
    if "git+" in entry:
        return "write NAME @ https://HOST/ARCHIVE-OF-THE-COMMIT.tar.gz"
    if "://" in entry.split(maxsplit=1)[0]:
        return "write NAME @ https://HOST/FILE"
    if re.fullmatch(r"[^\s=]+=[^\s=]+", entry):
        return "an exact version is written with =="
    if re.fullmatch(r"[A-Za-z0-9._-]+([ ,]+[A-Za-z0-9._-]+)+", entry):
        return "one requirement per entry or line"
    return ""
