"""The right to do one thing at a time, among threads and processes.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import stat
import time
from typing import TYPE_CHECKING, Final

import filelock

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import files

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

POLL_SECONDS: Final = 0.1
"""How long after its release a lock may stay unnoticed by those who wait."""


@contextlib.contextmanager
def hold(path: Path, *, cancel: threading.Event, timeout: float) -> Iterator[None]:
    """Hold the lock file ``path``; waits until it is free, up to ``timeout`` seconds.

    The holder's death frees it. The file stays: removing it would let two hold it.
    Its mode follows the umask, so that all who share the directory may lock it.
    Not reentrant; holds between hosts only where the file system has ``flock``.

    :param cancel: ends the waiting once set
    :raises StoreError: the waiting was ended (``build-cancelled``) or took too long
        (``lock-timeout``), or the file system has no locks
    """
    with files.translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
        # Older filelocks change the mode to 0644 unless told another one.
        mode = stat.S_IMODE(path.stat().st_mode)
    lock = filelock.FileLock(path, mode=mode)
    deadline = time.monotonic() + timeout
    while not _acquired(lock, path):
        if time.monotonic() >= deadline:
            raise StoreError(
                f"another process has held this image's lock for {timeout:g} s",
                hint="it may be stopped or hang: see who has the file open, or submit"
                " again",
                code="lock-timeout",
                path=str(path),
            )
        if cancel.wait(POLL_SECONDS):
            raise StoreError(
                "stopped while waiting for another build of this image",
                code="build-cancelled",
                path=str(path),
            )
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: filelock.BaseFileLock, path: Path) -> bool:
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:  # an OSError itself
        return False
    except OSError as error:
        raise files.store_error(error, path) from error
    return True
