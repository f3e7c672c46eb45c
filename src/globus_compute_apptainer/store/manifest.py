"""What is known of an image, kept beside it.

Runs wherever images are looked up: endpoint process, workers, ``gc-apptainer``.
"""

from __future__ import annotations

import dataclasses
import json
import platform as machine
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from globus_compute_apptainer.errors import StoreError

FORMAT: Final = 3
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le"}


@dataclass(frozen=True)
class Manifest:
    """One image: what was asked for, what was made of it, and how.

    :param spec_digest: ``sha256:…`` of the spec in canonical form
    :param image_digest: ``sha256:…`` that the image file is named by; set by the store
    :param size: bytes of the image file; set by the store
    :param pieces: of the file, in order: size and SHA-256 (hex) each, see
        :mod:`..pieces`; set by the store
    :param spec: the canonical spec
    :param base: reference of the base image, ``agent://…``
    :param base_digest: what the reference was resolved to, None if not known
    :param strategy: ``layered``, or ``flat`` for the reason given in ``reason``
    :param layers: over the base, lowest first: ``kind``, ``key`` and ``size`` each,
        and ``bytecode`` where it holds that of its packages
    :param markers: files inside that prove that the layers are there
    :param start: program inside that every task's process is started through
    :param lock: everything that the image was made from, see :mod:`..build.lock`
    :param python: absolute path inside, None in an image without Python
    :param python_version: such as ``3.11.2``
    :param os: the distribution's own name for itself
    :param packages: Python packages, ``name==version``, sorted
    :param platform: such as ``linux/amd64``
    :param created: UTC, ISO 8601
    :param build_seconds: wall-clock seconds, and by stage in ``stage_seconds``
    :param log: path of the build's log on the machine that built it
    :param name: what people call it; not part of its identity
    """

    spec_digest: str
    image_digest: str
    size: int
    spec: Mapping[str, Any]
    base: str
    base_digest: str | None
    python: str | None
    python_version: str | None
    os: str
    packages: tuple[str, ...]
    platform: str
    apptainer_version: str
    builder_version: str
    created: str
    build_seconds: float
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    log: str = ""
    name: str = ""
    strategy: str = "layered"
    reason: str = ""
    layers: tuple[Mapping[str, Any], ...] = ()
    markers: tuple[str, ...] = ()
    start: str | None = None
    lock: Mapping[str, Any] = field(default_factory=dict)
    pieces: tuple[tuple[int, str], ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """Readable JSON with sorted keys and a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of :meth:`to_json`.

        :raises StoreError: of another format, or not exactly a manifest
            (``manifest-invalid``)
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise _invalid(f"not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise _invalid("not an object")
        if raw.get("format") != FORMAT:
            raise _invalid(f"format {raw.get('format')!r}, this version reads {FORMAT}")
        names = {f.name for f in dataclasses.fields(cls)}
        if raw.keys() != names:
            raise _invalid(f"missing or unknown: {sorted(raw.keys() ^ names)}")
        for name, kinds in _KINDS.items():
            if not isinstance(raw[name], kinds) or isinstance(raw[name], bool):
                raise _invalid(f"{name} is {raw[name]!r:.60}")
        for name, kind in _LISTS.items():
            if not all(isinstance(item, kind) for item in raw[name]):
                raise _invalid(name)
            raw[name] = tuple(raw[name])
        raw["pieces"] = tuple(_piece(item) for item in raw["pieces"])
        return cls(**raw)

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """Of the image file's pieces, bytes."""
        return tuple(size for size, _ in self.pieces)


_TEXT: Final = (str,)
_TEXT_OR_NONE: Final = (str, type(None))
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "spec_digest": _TEXT,
    "image_digest": _TEXT,
    "size": (int,),
    "spec": (dict,),
    "base": _TEXT,
    "base_digest": _TEXT_OR_NONE,
    "python": _TEXT_OR_NONE,
    "python_version": _TEXT_OR_NONE,
    "os": _TEXT,
    "packages": (list,),
    "platform": _TEXT,
    "apptainer_version": _TEXT,
    "builder_version": _TEXT,
    "created": _TEXT,
    "build_seconds": (int, float),
    "stage_seconds": (dict,),
    "log": _TEXT,
    "name": _TEXT,
    "strategy": _TEXT,
    "reason": _TEXT,
    "layers": (list,),
    "markers": (list,),
    "start": _TEXT_OR_NONE,
    "lock": (dict,),
    "pieces": (list,),
}
_LISTS: Final = {"packages": str, "layers": dict, "markers": str}


def platform_name() -> str:
    """This machine's platform as registries write it, such as ``linux/amd64``."""
    architecture = machine.machine()
    name = _ARCHITECTURES.get(architecture, architecture)
    return f"{machine.system().lower()}/{name}"


def _piece(item: Any) -> tuple[int, str]:
    match item:
        case [int(size), str(sha256)] if size >= 0:
            return size, sha256
    raise _invalid(f"pieces has {item!r:.60}")


def _invalid(reason: str) -> StoreError:
    return StoreError(f"this is no manifest: {reason}", code="manifest-invalid")
