"""Validators of what a spec brings beside packages: payload, files, build variables.

Pure. Each takes the field's name as the user wrote it and its plain JSON value, and
returns the normal form or raises :class:`~..errors.SpecError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import posixpath
import re

from globus_compute_apptainer.spec import fields, foreign, ingest
from globus_compute_apptainer.spec.ingest import Ingested
from globus_compute_apptainer.spec.items import bounded
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind, text
from globus_compute_apptainer.spec.runtime import runtime

#: Names that `files` may have, in the order of the reference documentation.
FILES = (
    "requirements.txt",
    "environment.yml",
    "environment.yaml",
    "apt.txt",
    "runtime.txt",
    "Pipfile",
    "Pipfile.lock",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
    "install.R",
    "postBuild",
    "start",
)

#: Of these: what is code or part of a project, and so is put at `/payload`.
_KEPT = ("pyproject.toml", "setup.py", "setup.cfg", "install.R", "postBuild", "start")
_PROJECT = ("pyproject.toml", "setup.py")

SCHEMES = ("https", "git+https", "http", "git+http")

_LONGEST = 2000
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?")
_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=%/-]*")
_QUERY = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=%/?-]*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_PORTS = {"https": ":443", "http": ":80"}
# git's own rules for names of refs (git-check-ref-format), and commits.
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]*")
_NOT_REF = re.compile(r"\.\.|@\{|//|/\.|\.lock(/|\Z)|[./]\Z")
_SHA256 = re.compile(r"sha256=([0-9A-Fa-f]{64})")

_AGE = re.compile(r"([1-9][0-9]{0,5})\s*(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}

_RESERVED = re.compile(
    r"(PIP|UV|CONDA|MAMBA|RATTLER|APT|GC_APPTAINER)_.*|(HTTPS?|ALL|FTP|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|GIT_SSL_CAINFO|GIT_CONFIG.*",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Brought:
    """What `files` comes to.

    :param asked: what can be said in other fields
    :param kept: ``(name, text)`` of what needs a tree, sorted
    """

    asked: Ingested = dataclasses.field(default_factory=Ingested)
    kept: tuple[tuple[str, str], ...] = ()


def payload_url(field: str, value: Json) -> str:
    """``https://HOST/PATH[#sha256=…]`` of an archive, or ``git+https://HOST/PATH[#REF]``.

    A path that ends in ``.git`` means git. Hosts are lower case, default ports and
    ``.`` parts are left out.
    """
    with blame(field, value):
        written = text(value, "as in https://HOST/ARCHIVE.tar.gz")
        if len(written) > _LONGEST:
            raise Refusal(f"is longer than {_LONGEST} characters")
        parts = _URL.fullmatch(written)
        if parts is None:
            raise Refusal(
                "is not a URL", "https://HOST/ARCHIVE.tar.gz or git+https://…"
            )
        scheme, host, path = parts[1].lower(), parts[2], parts[3]
        _check_scheme(scheme)
        if "@" in host:
            hint = "specs are logged; use a URL that needs none"
            raise Refusal("has credentials, which is not accepted", hint)
        path = _path(path)
        query, fragment = parts[4] or "", (parts[5] or "")[1:]
        if not _QUERY.fullmatch(query[1:]):
            raise Refusal("has unusual characters", "percent-encode them")
        if path.endswith(".git") and not scheme.startswith("git+"):
            scheme = f"git+{scheme}"
        host = _host(scheme, host)
        tail = _git_tail if scheme.startswith("git+") else _archive_tail
        return f"{scheme}://{host}{path}{tail(path, query, fragment)}"


def _check_scheme(scheme: str) -> None:
    if scheme in SCHEMES:
        return
    hint = "one of " + ", ".join(f"{name}://" for name in SCHEMES)
    near = difflib.get_close_matches(scheme[:20], SCHEMES, n=1)
    nearest = f"{near[0]}://" if near else ""
    raise Refusal(f"has the scheme {scheme[:20]!r}", hint, nearest=nearest)


def _host(scheme: str, host: str) -> str:
    host = host.lower().removesuffix(_PORTS[scheme.removeprefix("git+")])
    if not _HOST.fullmatch(host):
        raise Refusal("has a host that is not HOST or HOST:PORT")
    return host


def _path(path: str) -> str:
    if not _PATH.fullmatch(path) or any(not e for e in _ESCAPE.findall(path)):
        raise Refusal("has a path with unusual characters", "percent-encode them")
    escaped = _ESCAPE.sub(lambda found: found[0].upper(), path)
    if "%2E" in escaped or "%2F" in escaped or "%5C" in escaped:
        raise Refusal("has a path with escaped dots or slashes", "write them out")
    short = "/" + posixpath.normpath(escaped).lstrip("/")
    if ".." in escaped.split("/"):
        raise Refusal("has a .. part in its path")
    if short == "/":
        raise Refusal("names a host only", "as in https://HOST/ARCHIVE.tar.gz")
    return short


def _git_tail(path: str, query: str, ref: str) -> str:
    if query:
        raise Refusal("has a query, which git URLs cannot have")
    if re.search(r"@[^/]*\Z", path):
        hint = "write git+https://HOST/PATH#REF"
        raise Refusal("has '@' in its last part; a ref stands after '#'", hint)
    if not ref:
        return ""
    if not _REF.fullmatch(ref) or _NOT_REF.search(ref):
        raise Refusal("has a ref that git cannot have", "a branch, a tag or a commit")
    return f"#{ref}"


def _archive_tail(path: str, query: str, fragment: str) -> str:
    del path
    if not fragment:
        return query
    found = _SHA256.fullmatch(fragment)
    if found is None:
        hint = "#sha256=… checks an archive; for a ref write git+https://…#REF"
        raise Refusal("has a fragment that archives do not have", hint)
    return f"{query}#sha256={found[1].lower()}"


def files(field: str, value: Json, *, payload: bool) -> Brought:
    """The texts of repo2docker files, read at once where they stand alone.

    With a payload they are laid over it, and all of them are read together when the
    image is built; here only a runtime.txt is looked at, since it chooses the base.
    """
    texts = _texts(field, value)
    if payload:
        python = _python_of(field, texts)
        return Brought(Ingested(python=python), tuple(sorted(texts.items())))
    found = ingest.ingest(texts, where=f"{field}.")
    kept = {name for name in _KEPT if name in texts}
    other = set(ingest.ENVIRONMENTS) & set(found.read)
    if other and _needs_tree(found, other, kept):
        kept |= other
        found = dataclasses.replace(found, pip=(), conda=None)
    return Brought(found, tuple((name, texts[name]) for name in sorted(kept)))


def _needs_tree(found: Ingested, environments: set[str], kept: set[str]) -> bool:
    """Whether an environment file says what no field of a spec can say."""
    if found.hashes or found.constraints:
        return True
    if any(project != "." for project in found.projects):
        return True
    # Without it, the project would be taken for the environment.
    return not kept.isdisjoint(_PROJECT) and "requirements.txt" not in environments


def _texts(field: str, value: Json) -> dict[str, str]:
    if not isinstance(value, dict):
        with blame(field, value):
            hint = '{"requirements.txt": "pandas\\n"}'
            raise Refusal(f"is {kind(value)}; expected an object", hint)
    bounded(field, len(value), len(FILES))
    found: dict[str, str] = {}
    for name, content in value.items():
        with blame(field, name):
            _check_name(name)
        with blame(f"{field}.{name}"):
            if not isinstance(content, str):
                raise Refusal(f"is {kind(content)}; expected the text of the file")
            if "\0" in content:
                raise Refusal("has a NUL character")
        found[name] = content
    return found


def _check_name(name: str) -> None:
    if name in FILES:
        return
    if name in foreign.FOREIGN:
        raise foreign.refusal(name)
    hint = "the names are " + ", ".join(FILES)
    last = posixpath.basename(name[:80])
    near = last if last in FILES else ""
    lower = {known.lower(): known for known in FILES}
    for close in difflib.get_close_matches(last.lower(), lower, n=1):
        near = near or lower[close]
    raise Refusal("has a name that is not one of repo2docker's", hint, nearest=near)


def _python_of(field: str, texts: dict[str, str]) -> str | None:
    others = (*ingest.ENVIRONMENTS[:-1],)
    if "runtime.txt" not in texts or any(name in texts for name in others):
        return None
    label = f"{field}.runtime.txt"
    with blame(label, texts["runtime.txt"]):
        minor, _ = runtime(texts["runtime.txt"])
    return fields.python(label, minor) if minor else None


def build_env(field: str, value: Json) -> tuple[tuple[str, str], ...]:
    """Variables of the build, sorted by name; not those by which the endpoint's
    administrator says where packages come from."""
    pairs = fields.env(field, value)
    for name, content in pairs:
        with blame(field, name):
            if _RESERVED.fullmatch(name):
                hint = "the endpoint's administrator sets it, as `build.env`"
                raise Refusal("has a reserved name", hint)
        with blame(f"{field}.{name}"):
            if "\n" in content or "\r" in content:
                raise Refusal("has several lines")
    return pairs


def refresh(field: str, value: Json) -> float:
    """An age, ``7d``, in seconds."""
    hint = "a whole number and m, h, d or w, as in 7d"
    with blame(field, value):
        found = _AGE.fullmatch(text(value, hint))
        if found is None:
            raise Refusal("is not an age", hint)
        return float(int(found[1]) * _SECONDS[found[2]])
