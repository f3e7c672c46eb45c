"""The parts of a lock, each read strictly. Pure.

A lock may come from anywhere, and what is in it ends in requirements files, in
definition files and on command lines. So every text has its grammar here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

Record = Mapping[str, Any]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_HASH: Final = re.compile(
    r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CONDA_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,199}")
_DEBIAN_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{0,199}")
_DEBIAN_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]{0,199}")
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_URL: Final = re.compile(r"(https?|file)://[!-~]{1,2000}")
_ANY_URL: Final = re.compile(r"[!-~]{1,2000}")
_REFERENCE: Final = re.compile(r"[a-z-]+:(//)?[!-~]{1,1000}")

_PINNABLE: Final = frozenset({"docker", "oras"})
"""Agents whose references can name a digest."""


class ShapeError(ValueError):
    """What is wrong with a part, and where."""


def base(raw: object) -> dict[str, str]:
    """The arguments of :class:`~.lock.Lock` for the base."""
    part = mapping("base", raw)
    return {
        "base": _text("base.reference", part.get("reference"), _REFERENCE),
        "base_digest": _text("base.digest", part.get("digest"), _DIGEST),
    }


def apt(raw: object) -> tuple[str, ...]:
    """Every package as ``name=version``, sorted."""
    if raw is None:
        return ()
    pins = []
    for where, one in _packages("apt", raw):
        name = _text(f"{where}.name", one.get("name"), _DEBIAN_NAME)
        version = _text(f"{where}.version", one.get("version"), _DEBIAN_VERSION)
        pins.append(f"{name}={version}")
    return tuple(sorted(pins))


def conda(raw: object) -> tuple[Record, ...] | None:
    """Every package's record, as it was written."""
    if raw is None:
        return None
    records = []
    for where, one in _packages("conda", raw):
        _text(f"{where}.name", one.get("name"), _CONDA_NAME)
        _text(f"{where}.version", one.get("version"), _VERSION)
        _text(f"{where}.build", one.get("build"), _WORD)
        _text(f"{where}.url", one.get("url"), _URL)
        for key, grammar in (("sha256", _SHA256), ("md5", _MD5), ("subdir", _WORD)):
            if one.get(key) is not None:
                _text(f"{where}.{key}", one[key], grammar)
        if not (one.get("sha256") or one.get("md5")):
            raise ShapeError(f"{where} has no checksum")
        records.append(one)
    return tuple(records)


def pip(raw: object) -> tuple[str, ...] | None:
    """Requirement lines with hashes, as pip and uv read them, sorted."""
    if raw is None:
        return None
    return tuple(sorted(_requirement(*found) for found in _packages("pip", raw)))


def _requirement(where: str, one: Record) -> str:
    name = _text(f"{where}.name", one.get("name"), _NAME)
    hashes = one.get("hashes", [])
    if not isinstance(hashes, list):
        raise ShapeError(f"{where}.hashes is not a list")
    words = [
        "--hash=" + _text(f"{where}.hashes[{n}]", one_hash, _HASH)
        for n, one_hash in enumerate(hashes)
    ]
    if one.get("url") is not None:
        first = f"{name} @ {_text(f'{where}.url', one['url'], _URL)}"
    else:
        version = _text(f"{where}.version", one.get("version"), _VERSION)
        first = f"{name}=={version}"
    return " ".join([first, *sorted(words)])


def payload(raw: object) -> dict[str, str] | None:
    """Where the payload was, and what it was."""
    if raw is None:
        return None
    part = mapping("payload", raw)
    found = {}
    if part.get("url") is not None:
        found["url"] = _text("payload.url", part["url"], _ANY_URL)
    for key, grammar in (("commit", _COMMIT), ("sha256", _SHA256)):
        if part.get(key) is not None:
            value = part[key]
            value = value.removeprefix("sha256:") if isinstance(value, str) else value
            found[key] = _text(f"payload.{key}", value, grammar)
    return found or None


def request(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical spec as a client writes specs."""
    found: dict[str, Any] = {
        name: spec[name]
        for name in ("base_image", "python", "pip", "apt", "post")
        if name in spec
    }
    if "agent" in spec:
        found["base_image_type"] = spec["agent"]
    if isinstance(spec.get("conda"), dict):
        conda = spec["conda"]
        found["conda"] = {
            "channels": conda.get("channels", []),
            "dependencies": conda.get("specs", []),
            "variables": _pairs(conda.get("variables")),
        }
    if "payload" in spec:
        found["payload_url"] = spec["payload"]
    for name in ("files", "build_env"):
        if name in spec:
            found[name] = _pairs(spec[name])
    return found


def _pairs(raw: object) -> dict[str, Any]:
    pairs = raw if isinstance(raw, list) else []
    return {p[0]: p[1] for p in pairs if isinstance(p, list) and len(p) == 2}


def pinned_base(agent: str, reference: str, digest: str) -> str:
    """A reference that names the digest, where its kind can; else as it is."""
    if agent not in _PINNABLE:
        return reference
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"


def pinned_payload(url: str | None, locked: Record | None) -> str | None:
    """A payload's URL that names what it must be."""
    if url is None or locked is None:
        return url
    place = url.partition("#")[0]
    if "commit" in locked:
        return f"{place}#{locked['commit']}"
    return f"{place}#sha256={locked['sha256']}" if "sha256" in locked else url


def mapping(where: str, raw: object) -> dict[str, Any]:
    """``raw``, which must be an object."""
    if not isinstance(raw, dict):
        raise ShapeError(f"{where} is {'missing' if raw is None else 'not an object'}")
    return raw


def _packages(where: str, raw: object) -> list[tuple[str, Record]]:
    found = mapping(where, raw).get("packages")
    if not isinstance(found, list):
        raise ShapeError(f"{where}.packages is not a list")
    rows = enumerate(found)
    return [
        (f"{where}.packages[{n}]", mapping(f"{where}.packages[{n}]", one))
        for n, one in rows
    ]


def _text(where: str, value: object, grammar: re.Pattern[str]) -> str:
    if not isinstance(value, str):
        raise ShapeError(f"{where} is not a text")
    if not grammar.fullmatch(value):
        raise ShapeError(f"{where} is {value!r:.80}, which cannot be")
    return value
