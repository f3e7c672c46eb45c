"""What a build is asked for, where it works, and what it returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.build.probe import Probe
    from globus_compute_apptainer.build.record.lock import Lock
    from globus_compute_apptainer.pieces import Known
    from globus_compute_apptainer.spec.model import ImageSpec
    from globus_compute_apptainer.spec.policy import Policy

STAGES: Final = (
    *("resolve", "pull", "payload", "apt", "conda", "pip", "post", "pack", "probe"),
)
"""Every stage of a build, in order."""


@dataclass(frozen=True)
class Shelves:
    """Where builds keep things for later builds.

    :param tags: directory for what names were resolved to
    :param packages: directory for the caches of uv and rattler
    """

    bases: Keeper
    layers: Keeper
    tags: Path
    packages: Path


@dataclass(frozen=True)
class Order:
    """One image to be built, and how.

    :param policy: what a payload's own files may ask for; None: everything
    :param fresh: resolve tags and requirements again, and make layers anew
    :param locked: build exactly this
    """

    image: ImageSpec
    policy: Policy | None = None
    fresh: bool = False
    locked: Lock | None = None


Compile = Callable[[Path, Path, threading.Event], bool]
"""Makes bytecode: the squashfs file to write, a scratch directory, what ends it;
whether the file is there then."""


def ignore(_compile: Compile) -> None:
    """For those who do not want bytecode while an image is being made."""


def unheeded(_known: Known) -> None:
    """For those who do not want to know when an image is whole."""


@dataclass(frozen=True)
class Place:
    """Where one build works.

    :param scratch: a private empty directory, see :mod:`.scratch`
    :param target: the image file to write, on the cache's file system
    :param log: file to be written, line by line as things happen; credentials of the
        site's configuration are removed, and its last line says how the build ended
    """

    scratch: Path
    target: Path
    log: Path


@dataclass(frozen=True)
class Built:
    """A finished image, not yet in the store.

    :param base: the base's reference, ``agent://…``
    :param base_digest: ``sha256:…`` that it was resolved to
    :param stage_seconds: wall-clock seconds by stage, of the stages entered
    :param reason: why the image is flat; empty if it is not
    """

    base: str
    base_digest: str
    probe: Probe
    layers: tuple[Layer, ...]
    markers: tuple[str, ...]
    reason: str
    start: str | None
    lock: Mapping[str, Any]
    stage_seconds: Mapping[str, float]
    apptainer_version: str
