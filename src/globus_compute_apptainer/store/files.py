"""Writing files so that they are there whole or not at all.

Runs in the endpoint process and in ``gc-apptainer``. Relies on nothing but rename
within one directory tree, which NFS and Lustre have too. Modes follow the umask, so
that a group may share a cache.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError, is_full, is_refused
from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.pieces import (
    CHUNK_BYTES,
    Hasher,
    Known,
    Piece,
    name_of,
    read_piece,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

_ATTEMPTS: Final = 5


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an :exc:`OSError` into a :class:`StoreError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise store_error(error, path) from error


def store_error(error: OSError, path: Path) -> StoreError:
    """What a person is told of a failed file operation in the cache."""
    where = _concerned(error, path)
    reason = error.strerror or str(error)
    if is_full(error):
        return StoreError(
            f"there is no room left for images: {reason}",
            hint="free some room, or move `cache_dir` to a larger file system",
            code="disk-full",
            path=where,
        )
    hint = ""
    if is_refused(error):
        hint = "`cache_dir` must be writable for the user that the endpoint runs as"
    return StoreError(
        f"the image cache cannot be used: {reason}", hint=hint, path=where
    )


def _concerned(error: OSError, path: Path) -> str:
    """Of the two ends of a rename, the one that may not be written to."""
    names = [str(name) for name in (error.filename, error.filename2) if name]
    closed = [name for name in names if not os.access(Path(name).parent, os.W_OK)]
    return next(iter(closed or names), str(path))


@dataclass(frozen=True)
class Sealed:
    """A file that is on disk, by its pieces."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(piece.size for piece in self.pieces)

    @property
    def sha256(self) -> str:
        """What it is named by, hex; see :mod:`..pieces`."""
        return name_of(self.pieces)


def seal(
    path: Path, cancel: threading.Event | None = None, known: Known = ()
) -> Sealed:
    """Have a file's content on disk, and read for its digest what is not ``known``.

    :param cancel: ends it once set
    :raises OSError: it cannot be read
    :raises StoreError: it was ended (``build-cancelled``)
    """
    sync_file(path)
    pieces: list[Piece] = []
    at, size = 0, path.stat().st_size
    with path.open("rb") as file:
        check = functools.partial(_check, file, cancel)
        for place, piece in sorted(known, key=lambda one: one[0]):
            if not at <= place <= place + piece.size <= size:
                raise OSError(errno.EIO, "it lacks what was put into it", str(path))
            if at < place:
                pieces.append(read_piece(file, at, place - at, check))
            pieces.append(piece)
            at = place + piece.size
        if at < size or not pieces:
            pieces.append(read_piece(file, at, size - at, check))
    return Sealed(tuple(pieces))


def name(
    path: Path, sizes: Sequence[int] = (), cancel: threading.Event | None = None
) -> str:
    """What a file is named by if it has pieces of these sizes, see :mod:`..pieces`.

    :raises StoreError: ``cancel`` was set meanwhile (``build-cancelled``)
    """
    hasher = Hasher(sizes)
    with path.open("rb") as file:
        for chunk in _chunks(file, cancel):
            hasher.update(chunk)
    return hasher.name


def copy_durably(
    source: Path, target: Path, cancel: threading.Event | None = None
) -> Sealed:
    """Copy a file, to disk.

    The copy is read again and compared, so that what these say is what is there.

    :param cancel: ends it once set; the target is then incomplete
    :raises OSError: it cannot be read or written, or reads back differently (EIO)
    :raises StoreError: it was ended (``build-cancelled``)
    """
    hasher = Hasher()
    with source.open("rb") as reader, target.open("xb") as writer:
        for chunk in _chunks(reader, cancel):
            hasher.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    sealed = Sealed(hasher.pieces)
    if target.stat().st_size != sealed.size or sha256(target, cancel) != sealed.sha256:
        raise OSError(errno.EIO, "the copy differs from the original", str(target))
    return sealed


def sha256(path: Path, cancel: threading.Event | None = None) -> str:
    """SHA-256 of a file's content, hex.

    :raises StoreError: ``cancel`` was set meanwhile (``build-cancelled``)
    """
    return name(path, cancel=cancel)


def _chunks(file: IO[bytes], cancel: threading.Event | None) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        _check(file, cancel)
        yield chunk


def _check(file: IO[bytes], cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise StoreError(
            "stopped while the image was put into the cache",
            code="build-cancelled",
            path=str(file.name),
        )


def write_durably(path: Path, text: str) -> None:
    """Write a new file, to disk."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str, tmp: Path) -> None:
    """Make ``path`` hold ``text``; a reader sees the old or the new, whole.

    :param tmp: a directory on the same file system
    """
    new = tmp / owned_name(path.name)
    try:
        write_durably(new, text)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def touch_below(path: Path) -> None:
    """Make an empty file, and its directory, which others may remove while it is empty.

    :raises OSError: it cannot be made
    """
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.touch()
            return
    path.touch()


def sync_file(path: Path) -> None:
    """Have a file's content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make renames in a directory survive a crash, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)
