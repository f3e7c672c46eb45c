"""What something took: seconds on the clock, and seconds of processors.

The second is of this process and of all that it started and that ended, user and system
together. It changes little when other programs run beside; the clock's does.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds: ``wall`` on the monotonic clock, ``cpu`` of processors."""

    wall: float
    cpu: float


class Watch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), _used()

    def read(self) -> Spent:
        return Spent(time.monotonic() - self._wall, _used() - self._cpu)


def _used() -> float:
    seconds = 0.0
    for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(whose)
        seconds += used.ru_utime + used.ru_stime
    return seconds
