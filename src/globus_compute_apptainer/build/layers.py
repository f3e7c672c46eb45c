"""Making layers and putting them together with their base into one image.

Runs in the endpoint process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.layer import Layer, layer_key
from globus_compute_apptainer.pieces import Piece, read_piece

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Inventory
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.pieces import Known

LAYER_FILE: Final = "layer.sqfs"
LOCK_FILE: Final = "layer.json"
MAKING_FILE: Final = "making"
DIGEST_FILE: Final = "layer.sha256"

COPY_BYTES: Final = 64 * 1024**2

_CANNOT_COPY_INSIDE: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
)


@dataclass(frozen=True)
class Below:
    """What a new layer is laid on.

    :param base_digest: of the base image
    :param sif: the base
    :param layers: over the base, lowest first
    :param inventory: of all that together
    :param known: pieces of ``sif`` that were hashed before
    """

    base_digest: str
    sif: Path
    inventory: Inventory
    layers: tuple[Layer, ...] = ()
    known: Known = ()

    @property
    def keys(self) -> list[str]:
        """For keys of layers that depend on everything below them."""
        return [self.base_digest, *(layer.identity for layer in self.layers)]

    @property
    def overlays(self) -> list[str]:
        """Options of ``exec`` that show base and layers together, read-only."""
        # The last overlay that is named lies on top of the others, in every version
        # (``AddLowerDir`` of Apptainer's pkg/util/fs/layout/layer/overlay).
        found: list[str] = []
        for layer in self.layers:
            found += ["--overlay", f"{layer.file}:ro"]
        return found


def kept_layer(
    job: Job,
    shelf: Keeper,
    kind: str,
    key: str,
    make: Callable[[Path], Mapping[str, Any]],
) -> Layer:
    """The layer with this key, made only if it is not on the shelf.

    A fresh job makes it anew, and later builds get that one; the earlier one stays, for
    those who have it already.

    :param make: gets a workspace on the shelf's file system, must leave
        :data:`LAYER_FILE` there (its marker inside, see
        :func:`~.layer.place_marker`), and returns the layer's lock
    :raises BuildError: what ``make`` raises
    """
    found = None if job.fresh else _newest(shelf, key)
    if found is None:
        with shelf.lock(key, cancel=job.cancel, timeout=max(1.0, job.left())):
            found = None if job.fresh else _newest(shelf, key)
            if found is None:
                found = _made(job, shelf, key, make)
    place, making = found
    lock = json.loads((place / LOCK_FILE).read_text(encoding="utf-8"))
    digest = ""
    with contextlib.suppress(OSError, UnicodeError):  # made by an older version
        digest = (place / DIGEST_FILE).read_text(encoding="ascii")
    return Layer(kind, key, place / LAYER_FILE, lock, making, digest)


def _newest(shelf: Keeper, key: str) -> tuple[Path, str] | None:
    """Where the last making of a layer is, and which one it is."""
    with contextlib.suppress(OSError):
        if (told := shelf.find(_newest_key(key))) is not None:
            making = (told / MAKING_FILE).read_text(encoding="ascii")
            if (place := shelf.find(_made_key(key, making))) is not None:
                return place, making
    place = shelf.find(key)
    return None if place is None else (place, "")


def _made(
    job: Job, shelf: Keeper, key: str, make: Callable[[Path], Mapping[str, Any]]
) -> tuple[Path, str]:
    """One that is there already stays: other builds are using it at this moment, and
    layers were made on it that do not fit another."""
    making = secrets.token_hex(16) if shelf.find(key) is not None else ""
    with shelf.workspace() as workspace:
        lock = make(workspace)
        text = json.dumps(lock, indent=1, sort_keys=True) + "\n"
        (workspace / LOCK_FILE).write_text(text, encoding="utf-8")
        with (workspace / LAYER_FILE).open("rb") as layer:
            size = os.fstat(layer.fileno()).st_size
            digest = read_piece(layer, 0, size, job.check).sha256
        (workspace / DIGEST_FILE).write_text(digest, encoding="ascii")
        place = shelf.keep(_made_key(key, making), workspace)
    if making:
        with shelf.workspace() as workspace:
            (workspace / MAKING_FILE).write_text(making, encoding="ascii")
            shelf.remove(_newest_key(key))
            shelf.keep(_newest_key(key), workspace)
    return place, making


def _made_key(key: str, making: str) -> str:
    return layer_key("made", of=key, making=making) if making else key


def _newest_key(key: str) -> str:
    return layer_key("newest", of=key)


def squash(job: Job, root: Path, target: Path, *options: str) -> None:
    """Pack a directory tree as a layer; everything in it will belong to root.

    :raises BuildError: mksquashfs is not there or fails
    """
    argv = [squashfs.program(), str(root), str(target), *squashfs.options(fast=True)]
    # Without the last, a file that cannot be read is packed as an empty one.
    argv += ["-all-root", "-no-xattrs", "-exit-on-error", *options]
    job.run(argv, env=job.apptainer.environment(), shown="mksquashfs")


def sif_with(job: Job, base: Path, layers: Sequence[Layer], target: Path) -> None:
    """Write one SIF of a base and layers, lowest first.

    Where the file system can share blocks, the copy of the base costs nothing.

    :raises BuildError: Apptainer cannot add to it
    """
    copy_file(base, target, job.check)
    for layer in layers:
        argv = job.apptainer.add_overlay_argv(target, layer.file, job.machine)
        job.run(argv, env=job.apptainer.environment(), shown="apptainer sif add")


def known_pieces(below: Below, target: Path) -> Known:
    """Where in a SIF that :func:`sif_with` wrote lies what was hashed before.

    :raises SifError: it is none
    """
    found = sif.parts(target)
    there = {(part.offset, part.size) for part in found}
    known = [one for one in below.known if (one[0], one[1].size) in there]
    laid = sif.overlays(found)[-len(below.layers) :] if below.layers else []
    for part, layer in zip(laid, below.layers, strict=False):
        if layer.sha256 and part.size == layer.size:
            known.append((part.offset, Piece(part.size, layer.sha256)))
    return tuple(known)


def copy_file(source: Path, target: Path, check: Callable[[], None]) -> None:
    """Copy a file inside the kernel, sharing blocks where the file system can.

    :param check: called between pieces; ends the copying by raising
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        left = os.fstat(reader.fileno()).st_size
        try:
            while left:
                check()
                piece = min(left, COPY_BYTES)
                done = os.copy_file_range(reader.fileno(), writer.fileno(), piece)
                if not done:
                    break
                left -= done
        except OSError as error:
            if error.errno not in _CANNOT_COPY_INSIDE:
                raise
        if left:
            reader.seek(writer.tell())
            while chunk := reader.read(COPY_BYTES // 16):
                check()
                writer.write(chunk)
