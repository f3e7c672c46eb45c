"""The process that a worker pool belongs to, watched for its end.

Runs in the keeper; workers use :func:`start_of` to name it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

LOOK_SECONDS: Final = 1.0


def start_of(pid: int) -> int:
    """Clock ticks from boot to the start of a process; 0 if there is none, or it has
    ended and only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return 0
    fields = stat.rpartition(b")")[2].split()
    return 0 if fields[0] in b"ZX" else int(fields[19])


class Owner:
    """A process by its number and start time, so that no other is taken for it."""

    def __init__(self, pid: int, start: int) -> None:
        self._pid, self._start = pid, start
        self.descriptor = -1
        with contextlib.suppress(OSError, AttributeError):
            self.descriptor = os.pidfd_open(pid)

    @property
    def look_seconds(self) -> float | None:
        """How often to ask :attr:`gone`, where no descriptor tells."""
        return None if self.descriptor >= 0 else LOOK_SECONDS

    @property
    def gone(self) -> bool:
        return start_of(self._pid) != self._start
