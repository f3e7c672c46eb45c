"""Layers: what is laid over a base image, one squashfs file each.

Runs in the endpoint process. A layer is made once and kept by its key, which says
what it was made of and on; the same key names the marker file inside it, by which a
container proves at its start that the layer is really there (Apptainer starts the
bare base without a word where it cannot mount overlays).

Everything of ours in an image is below :data:`HOME`, ``/payload`` and
``/.singularity.d/env`` (Apptainer sources every ``*.sh`` there, in order).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HOME: Final = "/.gc-apptainer"
"""In an image: what this package put there. A top-level name, since bases may have
``/opt`` as a symbolic link."""

MARKERS: Final = f"{HOME}/layers"
PAYLOAD: Final = "/payload"
ENVIRONMENT_SCRIPTS: Final = "/.singularity.d/env"

FORMAT: Final = 1
"""Of what layers hold and how; another number makes every layer anew."""


@dataclass(frozen=True)
class Layer:
    """A finished layer.

    :param kind: ``apt``, ``conda``, ``pip``, ``payload`` or ``post``
    :param key: ``sha256:…``, see :func:`layer_key`
    :param making: tells this one from others with the same key, which a fresh build
        made anew; empty for the first
    :param file: the squashfs file, with :func:`marker` inside
    :param lock: what is in it, for the image's lock: plain JSON
    :param sha256: of the file, hex; empty if that is not known
    """

    kind: str
    key: str
    file: Path
    lock: Mapping[str, Any] = field(default_factory=dict)
    making: str = ""
    sha256: str = ""

    @property
    def identity(self) -> str:
        """For keys of what is made on it."""
        return f"{self.key}/{self.making}" if self.making else self.key

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.file.stat().st_size

    @property
    def marker(self) -> str:
        return marker(self.key)

    @property
    def has_bytecode(self) -> bool:
        """Whether it brings the bytecode of all its packages."""
        return bool(self.lock.get("bytecode"))


def lacks_bytecode(layers: Iterable[tuple[str, bool]]) -> bool:
    """Whether bytecode is to be laid over an image with these layers: where it has
    Python packages, and one of the layers may hold sources that are not compiled.

    :param layers: kind of each, and whether it has its bytecode
    """
    told = list(layers)
    packages = any(kind in {"pip", "conda"} for kind, _ in told)
    return packages and any(not has for kind, has in told if kind != "apt")


def layer_key(kind: str, **made_of: Any) -> str:
    """The identity of a layer: everything that decides what is in it, as JSON."""
    told = {"format": FORMAT, "kind": kind, **made_of}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def marker(key: str) -> str:
    """Absolute path, in the image, of the marker of the layer with this key."""
    return f"{MARKERS}/{key.removeprefix('sha256:')[:32]}"


def place_marker(root: Path, key: str) -> None:
    """Put the marker into a tree that is to become a layer."""
    path = root / marker(key).lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
