"""When each child last worked, in memory that the keeper shares.

Runs on both sides. The keeper makes the memory, children write in it, each in a slot
of its own, and the keeper decides by it which container has been idle for longest.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import List

SLOTS = 1024
EMPTY, BUSY = 0.0, -1.0  # any other number is a time
_NUMBER = struct.Struct("d")
SIZE = SLOTS * _NUMBER.size


class Activity:
    """One slot: seconds of the monotonic clock, which all processes share."""

    def __init__(self, memory: mmap.mmap, slot: int) -> None:
        self._memory, self._place = memory, slot % SLOTS * _NUMBER.size

    def busy(self) -> None:
        self._set(BUSY)

    def idle(self) -> None:
        self._set(time.monotonic())

    def empty(self) -> None:
        self._set(EMPTY)

    def _set(self, number: float) -> None:
        _NUMBER.pack_into(self._memory, self._place, number)


def mapped(descriptor: int) -> mmap.mmap:
    """The memory behind a descriptor of :data:`SIZE` bytes."""
    return mmap.mmap(descriptor, SIZE)


def slots(memory: mmap.mmap) -> List[float]:
    """What the slots that are not empty hold."""
    numbers = struct.unpack_from("%dd" % SLOTS, memory)
    return [number for number in numbers if number != EMPTY]
