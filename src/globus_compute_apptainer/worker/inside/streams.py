"""The standard streams of a child, and its connections out of the task's reach.

Runs in the child. A task reads nothing, and prints to its worker's standard error.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sys
from typing import IO, Tuple

PRIVATE_FD = 200  # file descriptors of ours begin there


def private(fd: int) -> int:
    """Move a file descriptor out of the way; programs do not inherit it."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)
    os.close(fd)
    return moved


@functools.lru_cache(maxsize=1)
def standard() -> Tuple[IO[str], IO[str]]:
    """What ``sys.stdout`` and ``sys.stderr`` are to be, whatever is behind them."""
    return (
        open(1, "w", -1, errors="replace", closefd=False),
        open(2, "w", 1, errors="replace", closefd=False),
    )


class Streams:
    """A worker's connections and its standard error, duplicates of what it sent.

    :ivar tasks: where its tasks come from
    :ivar answers: where they are answered
    """

    def __init__(self, tasks: int, answers: int, errors: int) -> None:
        self.tasks, self.answers = private(tasks), private(answers)
        self._errors = private(errors)
        self._nothing = private(os.open(os.devnull, os.O_RDWR))
        self._objects = standard()
        self.restore()

    def restore(self) -> None:
        """Make standard streams usable again, whatever a task did to them."""
        for target, source in enumerate((self._nothing, self._errors, self._errors)):
            os.dup2(source, target)
        if self._objects[0].closed or self._objects[1].closed:
            standard.cache_clear()
            self._objects = standard()
        sys.stdout, sys.stderr = self._objects

    def flush(self) -> None:
        """Send on what a task printed; never fails."""
        for stream in self._objects:
            try:  # noqa: SIM105  # in half of the time of `suppress`
                stream.flush()
            except (OSError, ValueError):  # noqa: PERF203
                pass

    def forget(self) -> None:
        """Close the connections, in a process that a task forked."""
        for fd in (self.tasks, self.answers):
            os.closerange(fd, fd + 1)  # never fails
