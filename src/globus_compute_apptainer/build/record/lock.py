"""Locks: what an image was made from, exactly, and how to ask for that again.

Pure. A lock is plain JSON with a format number, kept in the manifest of its image and
written by ``gc-apptainer export``::

    {"format": 1,
     "spec": the canonical spec,
     "base": {"reference", "digest", "kind", "resolved_at", …},
     "apt": {"packages": [{"name", "version", "arch"}], "requested"},
     "conda": {"packages": [{"name", "version", "build", "url", "sha256", …}], …},
     "pip": {"packages": [{"name", "version", "hashes", "url"?}], …},
     "payload": {"url", "sha256" | "commit", …},
     "post": {…},
     "tools": {"apptainer": "1.4.5", "uv": …}}

A part is there only if the image has it. Locks are read back by :func:`parse`, which
believes nothing: what it returns can be written to requirements files and command
lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.record import pins
from globus_compute_apptainer.errors import BuildError

if TYPE_CHECKING:
    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.spec.model import ImageSpec

FORMAT: Final = 1
KINDS: Final = ("apt", "conda", "pip", "payload", "post")
"""Parts that come from layers, each from the layer of that kind."""

_GONE: Final = frozenset(
    {
        "base-not-found",
        "package-not-found",
        "hash-mismatch",
        "payload-not-found",
        "payload-changed",
    }
)
"""Codes of errors which, in a locked build, mean that something is there no more."""


def assemble(
    base_lock: Mapping[str, Any],
    layers: Sequence[Layer],
    tools: Mapping[str, str],
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The lock of an image.

    :param base_lock: of its base
    :param layers: over the base; of each kind the last one that has a lock counts
    :param tools: programs and packages that made it, with their versions
    :param spec: the canonical spec, without which the lock alone builds nothing
    """
    found: dict[str, Any] = {"format": FORMAT, "base": dict(base_lock)}
    if spec is not None:
        found["spec"] = dict(spec)
    for layer in layers:
        if layer.kind in KINDS:
            # Bytecode is of this making of the layer, not of its packages.
            told = {n: value for n, value in layer.lock.items() if n != "bytecode"}
            found[layer.kind] = told
    found["tools"] = dict(sorted({**_tools(found), **tools}.items()))
    return found


@dataclass(frozen=True)
class Lock:
    """A lock that was read and found sound; what a locked build hands to each maker.

    :param base: reference of the base, ``agent://…``, as it was asked for
    :param base_digest: ``sha256:…`` that it must have
    :param apt: every Debian package that was installed, ``name=version``
    :param conda: the records of the packages, for the installer; None where the
        image has no conda packages
    :param pip: requirement lines with hashes; None where the image has no Python
        packages of its own
    :param payload: URL, and ``commit`` or ``sha256``; None where it has none
    :param spec: the canonical spec; empty where the lock does not say
    :param document: the lock as it was read
    """

    base: str
    base_digest: str
    apt: tuple[str, ...] = ()
    conda: tuple[Mapping[str, Any], ...] | None = None
    pip: tuple[str, ...] | None = None
    payload: Mapping[str, str] | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def request(self) -> dict[str, Any]:
        """The spec as a client would send it, to be checked like any other."""
        return pins.request(self.spec)

    def pinned(self, image: ImageSpec) -> ImageSpec:
        """``image`` with its base, Debian packages and payload as locked.

        Its digest is another one: the result is for makers, not for the store.
        """
        return replace(
            image,
            base_image=pins.pinned_base(
                image.agent, image.base_image, self.base_digest
            ),
            apt=self.apt if image.apt else image.apt,
            payload=pins.pinned_payload(image.payload, self.payload),
        )


def parse(text: str) -> Lock:
    """Read a lock, or the lock in a manifest.

    :raises BuildError: it is none (``lock-invalid``); says where
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"it is not JSON: {error}") from None
    return from_document(raw)


def from_document(raw: object) -> Lock:
    """As :func:`parse`, of what JSON says.

    :raises BuildError: ``lock-invalid``
    """
    if not isinstance(raw, dict):
        raise invalid("it is not an object")
    if isinstance(raw.get("lock"), dict):  # a manifest
        raw = {"spec": raw.get("spec", {}), **raw["lock"]}
    if raw.get("format") != FORMAT:
        raise invalid(
            f"it has format {raw.get('format')!r:.20}, this version reads {FORMAT}"
        )
    if unknown := sorted(raw.keys() - {"format", "spec", "base", "tools", *KINDS}):
        raise invalid(f"it has the unknown part {unknown[0]!r:.60}")
    try:
        return Lock(
            **pins.base(raw.get("base")),
            apt=pins.apt(raw.get("apt")),
            conda=pins.conda(raw.get("conda")),
            pip=pins.pip(raw.get("pip")),
            payload=pins.payload(raw.get("payload")),
            spec=pins.mapping("spec", raw.get("spec", {})),
            document=raw,
        )
    except pins.ShapeError as error:
        raise invalid(str(error)) from None


def differences(lock: Lock, made: Mapping[str, Any]) -> list[str]:
    """In what an image's lock is not the one that was to be met; one line each.

    Compared are the base, and the packages by name and version (conda's by build
    too); not where they came from, nor the tools.
    """
    wanted, found = _contents(lock.document), _contents(made)
    lines = []
    for name in sorted({*wanted, *found}):
        before, after = wanted.get(name), found.get(name)
        if before != after:
            lines.append(f"{name}: {before or 'not there'} → {after or 'not there'}")
    return lines


def unavailable(error: BuildError) -> BuildError:
    """What a locked build says of an error: that the world has moved on, where that
    is the cause; else the error itself."""
    if error.code not in _GONE:
        return error
    return replace(
        error,
        message=f"what the lock names can no longer be had: {error.message}",
        hint="the output names it; build without --locked to resolve anew",
        code="lock-unavailable",
    )


def unmet(lines: Sequence[str], log: str = "") -> BuildError:
    """The error for an image that came out with :func:`differences`."""
    return BuildError(
        "the image is not what the lock says",
        hint="build without --locked to resolve anew",
        log=log,
        code="lock-unavailable",
        tail=tuple(lines[:60]),
    )


def invalid(reason: str) -> BuildError:
    """The error for what is no lock."""
    return BuildError(
        f"this is no lock that can be built: {reason}",
        hint="give the lock.json of `gc-apptainer export`, or a manifest.json",
        code="lock-invalid",
    )


def _tools(document: Mapping[str, Any]) -> dict[str, str]:
    """What the layers say of the tools that made them."""
    found = {}
    if uv := document.get("pip", {}).get("uv"):
        found["uv"] = str(uv)
    name, _, version = str(document.get("conda", {}).get("solver", "")).partition(" ")
    if version:
        found[name] = version
    return found


def _contents(document: Mapping[str, Any]) -> dict[str, str]:
    """What identifies the contents: ``pip numpy`` → ``2.1.0``."""
    found = {"base": str(document.get("base", {}).get("digest", ""))}
    for kind in ("apt", "conda", "pip"):
        for one in document.get(kind, {}).get("packages", ()):
            version = str(one.get("version"))
            if kind == "conda":
                version += f"={one.get('build', '')}"
            arch = f":{one['arch']}" if kind == "apt" and "arch" in one else ""
            found[f"{kind} {one.get('name')}{arch}"] = version
    payload = document.get("payload") or {}
    told = payload.get("tree") or payload.get("commit") or payload.get("sha256")
    if told:
        found["payload"] = str(told)
    return found
