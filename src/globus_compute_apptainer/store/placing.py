"""Directories that take the place of others: by one rename, or not at all.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.index import IMAGE

if TYPE_CHECKING:
    from pathlib import Path

_ATTEMPTS: Final = 5


def put(work: Path, place: Path, image: files.Sealed, tmp: Path) -> None:
    """Rename ``work`` to an image's place, unless a whole one is there.

    :param place: is named by the image's digest, hex
    :raises OSError: it cannot be done
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        if _renamed(work, place) or _is_whole(place / IMAGE, image):
            return
        discard(place, tmp)
    raise OSError(errno.EBUSY, "an image's place cannot be taken", str(place))


def discard(folder: Path, tmp: Path) -> None:
    """Take a directory out of sight at once, then delete it."""
    aside = tmp / owned_name("removed")
    tmp.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _renamed(work: Path, place: Path) -> bool:
    """False where ``place`` is there already."""
    try:
        work.rename(place)
    except OSError:
        if not place.exists():
            raise
        return False
    files.sync_folder(place.parent)
    return True


def _is_whole(path: Path, image: files.Sealed) -> bool:
    """Whether a file has an image's size and content."""
    try:
        sizes = [piece.size for piece in image.pieces]
        same_size = path.stat().st_size == image.size
        return same_size and files.name(path, sizes) == image.sha256
    except OSError:
        return False
