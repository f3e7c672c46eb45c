"""What is written down of a build: digest and size while it is checked, manifest after.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from globus_compute_apptainer import __version__
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.manifest import Manifest, platform_name

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.build.order import Built
    from globus_compute_apptainer.pieces import Known
    from globus_compute_apptainer.spec.model import ImageSpec


class Seal:
    """Brings a file to disk and reads it for its digest, when called with what is
    known of it.

    :ivar done: what it found; None where it could not (publishing says why)
    """

    def __init__(self, path: Path, cancel: threading.Event) -> None:
        self._path, self._cancel = path, cancel
        self.done: files.Sealed | None = None

    def __call__(self, known: Known) -> None:
        self.done = None
        with contextlib.suppress(OSError, StoreError):
            self.done = files.seal(self._path, self._cancel, known)


def manifest_of(
    image: ImageSpec, built: Built, seconds: float, log: Path, name: str
) -> Manifest:
    """The manifest of an image that was just built; the store adds digest and size."""
    probe = built.probe
    return Manifest(
        spec_digest=image.digest,
        image_digest="",
        size=0,
        spec=json.loads(image.canonical()),
        base=built.base,
        base_digest=built.base_digest,
        python=probe.python,
        python_version=probe.python_version,
        os=probe.os,
        packages=probe.packages,
        platform=platform_name(),
        apptainer_version=built.apptainer_version,
        builder_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 3),
        stage_seconds=dict(built.stage_seconds),
        log=str(log),
        name=name,
        strategy="flat" if built.reason else "layered",
        reason=built.reason,
        layers=tuple(map(_told, built.layers)),
        markers=built.markers,
        start=built.start,
        lock=built.lock,
    )


def _told(layer: Layer) -> dict[str, Any]:
    told = {"kind": layer.kind, "key": layer.key, "size": layer.size}
    return {**told, "bytecode": True} if layer.has_bytecode else told
