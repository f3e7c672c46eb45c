"""The folder of a worker pool on its node, where workers find their keeper.

Runs in worker processes. It is named after the process that started the workers
(HTEX's manager), so that all workers of a pool find the same one, and only they do:
nobody else may enter it. What a pool left that was killed with everything on its
node is removed by the next.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer import owners
from globus_compute_apptainer.errors import HostError
from globus_compute_apptainer.worker.keeper.owner import start_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX: Final = "gc-pool"
SOCKET: Final = "s"
LONGEST_ADDRESS: Final = 107  # bytes that an address of a Unix socket can have
USUAL: Final = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108  # a private folder there


@dataclass(frozen=True)
class Pool:
    """The process that a worker pool belongs to: number and start time."""

    pid: int
    start: int

    @classmethod
    def of_this_process(cls) -> Pool:
        """Its parent's; a process that init has adopted is a pool of its own."""
        parent = os.getppid()
        start = start_of(parent) if parent > 1 else 0
        return cls(parent, start) if start else cls(os.getpid(), start_of(os.getpid()))


@functools.lru_cache(maxsize=8)
def folder(pool: Pool, bases: Sequence[str] = ()) -> Path:
    """The pool's folder, which may have to be made (:func:`make`).

    :param bases: where it may be; by default where temporary files are
    :raises HostError: no base will do (``no-node-folder``)
    """
    host, boot, namespace = owners.machine()
    name = f"{PREFIX}-{host}-{boot}-{namespace}-{pool.pid}-{pool.start}-00000000"
    refused = []
    for base in bases or (tempfile.gettempdir(), *USUAL):
        path = Path(base).absolute() / name
        if len(os.fsencode(path / SOCKET)) > LONGEST_ADDRESS:
            refused.append(f"{base}: its name is too long")
            continue
        try:
            make(path)
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
        else:
            return path
    raise HostError(
        "this node has no folder for what its workers share: " + "; ".join(refused),
        hint="set TMPDIR to a short path on a local disk in `worker_init`",
        code="no-node-folder",
    )


def make(path: Path) -> None:
    """Make the folder, or make sure that it is this user's alone.

    :raises OSError: it cannot be made, or others may enter it
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if not (stat.S_ISDIR(found.st_mode) and private):
        raise PermissionError(1, "not a folder of this user alone", str(path))


def sweep(path: Path) -> None:
    """Remove what pools that are gone have left beside a folder of this one."""
    for left in owners.of_the_dead(path.parent, PREFIX):
        shutil.rmtree(left, ignore_errors=True)
