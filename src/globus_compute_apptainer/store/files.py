"""Writing files so that they are there whole or not at all.

Runs in the endpoint process and in ``gc-apptainer``. Relies on nothing but rename
within one directory tree, which NFS and Lustre have too. Modes follow the umask, so
that a group may share a cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import owned_name

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

CHUNK_BYTES: Final = 4 * 1024**2

_ATTEMPTS: Final = 5
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an :exc:`OSError` into a :class:`StoreError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise store_error(error, path) from error


def is_full(error: OSError) -> bool:
    """Whether there was no room, or no more than a quota allows."""
    return error.errno in _FULL


def is_refused(error: OSError) -> bool:
    """Whether permissions, or a read-only file system, were in the way."""
    return error.errno in _REFUSED


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
    """A file that is on disk: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


def seal(path: Path, cancel: threading.Event | None = None) -> Sealed:
    """Have a file's content on disk, and read it for its digest.

    :param cancel: ends it once set
    :raises OSError: it cannot be read
    :raises StoreError: it was ended (``build-cancelled``)
    """
    sync_file(path)
    digest = sha256(path, cancel)
    return Sealed(path.stat().st_size, digest)


def copy_durably(
    source: Path, target: Path, cancel: threading.Event | None = None
) -> tuple[int, str]:
    """Copy a file, to disk; returns its size in bytes and its SHA-256 (hex).

    The copy is read again and compared, so that what these say is what is there.

    :param cancel: ends it once set; the target is then incomplete
    :raises OSError: it cannot be read or written, or reads back differently (EIO)
    :raises StoreError: it was ended (``build-cancelled``)
    """
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, target.open("xb") as writer:
        for chunk in _chunks(reader, cancel):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    if target.stat().st_size != size or sha256(target, cancel) != digest.hexdigest():
        raise OSError(errno.EIO, "the copy differs from the original", str(target))
    return size, digest.hexdigest()


def sha256(path: Path, cancel: threading.Event | None = None) -> str:
    """SHA-256 of a file's content, hex.

    :raises StoreError: ``cancel`` was set meanwhile (``build-cancelled``)
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file, cancel):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: IO[bytes], cancel: threading.Event | None) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        if cancel is not None and cancel.is_set():
            raise StoreError(
                "stopped while the image was put into the cache",
                code="build-cancelled",
                path=str(file.name),
            )
        yield chunk


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
