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


def put(work: Path, place: Path, size: int, tmp: Path) -> None:
    """Rename ``work`` to an image's place, unless a whole one is there.

    :param place: is named by the image's SHA-256, hex
    :param size: of the image, bytes
    :raises OSError: it cannot be done
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        if _renamed(work, place) or _is_whole(place / IMAGE, size):
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


def _is_whole(path: Path, size: int) -> bool:
    """Size and content match; ``path`` lies in a directory named by its digest."""
    try:
        return path.stat().st_size == size and files.sha256(path) == path.parent.name
    except OSError:
        return False
