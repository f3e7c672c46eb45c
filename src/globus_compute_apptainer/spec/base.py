"""Base images: Apptainer's bootstrap agents and the references each of them takes.

Pure. An accepted reference holds only ASCII letters, digits and ``._-+@=:/``, so it
is safe as one line of a definition file.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from functools import lru_cache

from globus_compute_apptainer.spec.refusal import Refusal

#: Agents whose reference is a path on the endpoint's machine.
LOCAL_AGENTS = ("localimage", "docker-archive", "oci-archive", "oci")

AGENTS = ("docker", "oras", "library", "debootstrap", *LOCAL_AGENTS)
_UNSUPPORTED_AGENTS = ("yum", "zypper")

# The grammar of github.com/distribution/reference (reference.go), ASCII only and
# without IPv6 hosts.
_ALNUM = r"[a-z0-9]+"
_PATH = rf"{_ALNUM}(?:(?:[._]|__|-+){_ALNUM})*"
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_REPOSITORY = re.compile(rf"{_PATH}(?:/{_PATH})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LIBRARY = re.compile(r"[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*")
_SUITE = re.compile(r"[a-z][a-z0-9]{1,39}")
_FILE = re.compile(r"/[A-Za-z0-9._+@=/-]+")
_LOCAL_SCHEME = re.compile(r"(localimage|docker-archive|oci-archive|oci):(?://(?=/))?")

_LONGEST = 512
_LONGEST_NAME = 255
_HUB = ("docker.io", "index.docker.io")
_MOST_LIBRARY_PARTS = 4


def agent(name: str) -> str:
    """The bootstrap agent ``name``.

    :raises Refusal: unknown, or one that Apptainer has and we do not
        (``spec-unsupported``)
    """
    if name in AGENTS:
        return name
    if name in _UNSUPPORTED_AGENTS:
        reason = f"{name} is not supported, because it must run as the endpoint's root"
        hint = "use an image of that distribution, as in docker://rockylinux:9"
        raise Refusal(reason, hint, code="spec-unsupported")
    close = difflib.get_close_matches(name[:40].lower(), AGENTS, n=1)
    nearest = close[0] if close else ""
    raise Refusal("is not known", "one of " + ", ".join(AGENTS), nearest=nearest)


def reference(written: str, stated: str | None = None) -> tuple[str, str]:
    """``(agent, reference)`` of a ``base_image``, in one normal form.

    Docker references lose ``docker://``, ``docker.io/`` and ``library/`` and gain
    ``:latest`` where they name neither tag nor digest; a tag beside a digest is
    dropped, since the digest alone decides. Paths lose doubled slashes. What
    ``debootstrap`` takes is the name of a Debian or Ubuntu release (``bookworm``).

    :param stated: the agent given by ``base_image_type``
    :raises Refusal: anything that the agent could not fetch, or does not mean what
        it says (credentials, relative paths, blanks, quotes)
    """
    if len(written) > _LONGEST:
        raise Refusal(f"is longer than {_LONGEST} characters")
    found, rest = _split_scheme(written)
    if found and stated and found != stated:
        raise Refusal(f"says {found} and base_image_type says {stated}", "give one")
    chosen = found or stated or "docker"
    if chosen in LOCAL_AGENTS:
        return chosen, _local(chosen, rest)
    if chosen == "library":
        return chosen, _library(rest)
    if chosen == "debootstrap":
        if not _SUITE.fullmatch(rest):
            raise Refusal("is not the name of a release", "such as bookworm")
        return chosen, rest
    return chosen, _registry(chosen, rest)


def _split_scheme(written: str) -> tuple[str | None, str]:
    local = _LOCAL_SCHEME.match(written)
    if local:
        return local[1], written[local.end() :]
    scheme, colon, rest = written.partition("://")
    if colon:
        return agent(scheme), rest
    if written.startswith("/"):
        return ("localimage" if written.endswith(".sif") else None), written
    return None, written


def _local(chosen: str, rest: str) -> str:
    path, tag = rest, ""
    if chosen in ("oci", "oci-archive"):
        path, _, tag = rest.partition(":")
    if not path.startswith("/") or path.startswith("//"):
        raise Refusal("is not an absolute path", "on the endpoint's machine, from /")
    if not _FILE.fullmatch(path) or ".." in path.split("/"):
        hint = "only ASCII letters, digits and ._+@=- and no .. part"
        raise Refusal("is a path with parts that are not accepted", hint)
    if rest.partition(":")[1] and not _TAG.fullmatch(tag):
        raise Refusal("has a tag that no image can have")
    path = posixpath.normpath(path)
    if chosen == "localimage" and not path.endswith(".sif"):
        raise Refusal("is not the path of a .sif file")
    return f"{path}:{tag}" if tag else path


def _library(rest: str) -> str:
    path, colon, tag = rest.partition(":")
    parts = path.split("/")
    if len(parts) > _MOST_LIBRARY_PARTS or not all(map(_LIBRARY.fullmatch, parts)):
        raise Refusal("is not a library reference", "library://USER/GROUP/NAME:TAG")
    if colon and not _TAG.fullmatch(tag):
        raise Refusal("has a tag that no image can have")
    return f"{path}:{tag or 'latest'}"


def _registry(chosen: str, rest: str) -> str:
    file = chosen == "docker" and rest.endswith((".sif", ".def"))
    if file or rest.startswith(("/", ".", "~", "$")):
        hint = "files: an absolute .sif path, or docker-archive:/PATH"
        raise Refusal("is not an image reference", hint)
    named, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        hint = "a digest is sha256: and 64 hexadecimal digits; credentials never work"
        raise Refusal("has something after '@' that is not a digest", hint)
    name, tag = _split_tag(named)
    domain, path = _split_domain(name)
    domain = domain.lower()
    if domain and not _DOMAIN.fullmatch(domain):
        raise Refusal("has a registry that is not HOST or HOST:PORT")
    if not _REPOSITORY.fullmatch(path) or len(name) > _LONGEST_NAME:
        lower = _REPOSITORY.fullmatch(path.lower())
        hint = "repositories are lower case" if lower else "as in python:3.11-slim"
        raise Refusal("is not an image reference", hint)
    if chosen == "oras" and not domain:
        raise Refusal("names no registry", "as in oras://ghcr.io/org/image:tag")
    name = f"{domain}/{path}" if domain else path
    name = _familiar(domain, path) if chosen == "docker" else name
    return f"{name}@{digest}" if digest else f"{name}:{tag or 'latest'}"


def _split_tag(named: str) -> tuple[str, str]:
    head, slash, last = named.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise Refusal("has a tag that no image can have", "as in python:3.11-slim")
    return f"{head}{slash}{last}", tag


def _split_domain(name: str) -> tuple[str, str]:
    """As Docker does: the first part is a host if it could not be a user's name."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return first, rest
    return "", name


def _familiar(domain: str, path: str) -> str:
    if domain and domain not in _HUB:
        return f"{domain}/{path}"
    head, _, last = path.rpartition("/")
    if head == "library":
        return last
    # Without docker.io/ a first part such as "a.b" would become the registry.
    return f"docker.io/{path}" if _split_domain(path)[0] else path


def qualified(chosen: str, ref: str) -> str:
    """``agent://reference`` with the registry of a Docker reference spelt out."""
    if chosen != "docker":
        return f"{chosen}://{ref}"
    if _split_domain(ref)[0]:
        return f"docker://{ref}"
    return f"docker://docker.io/{ref if '/' in ref else 'library/' + ref}"


@lru_cache(maxsize=256)
def qualified_pattern(glob: str) -> str:
    """A glob for :func:`qualified` from one that a person wrote.

    ``docker://python:*`` means Docker Hub's ``python``, never a registry on a host of
    that name. A glob without an agent is one of Docker references, except ``*``
    alone, which means everything.
    """
    if glob == "*":
        return glob
    chosen, colon, rest = glob.partition("://")
    if not colon:
        chosen, rest = "docker", glob
    if chosen != "docker" or rest.startswith(("*", "?", "[")):
        return f"{chosen}://{rest}"
    domain, path = _split_domain(rest)
    if domain and domain not in _HUB:
        return f"docker://{rest}"
    user = "" if "/" in path or path.startswith(("*", "?", "[")) else "library/"
    return f"docker://docker.io/{user}{path}"
