"""So many builds at once, and who comes first is first.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_SECONDS: Final = 0.1


class Slots:
    """Places for builds of one process.

    A free place goes to the lowest number of those that wait at that moment: a request
    that waits for another process's build holds up nobody, and is not put back either.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, number: int, cancel: threading.Event) -> Iterator[None]:
        """Have a place while this is entered; waits for it.

        :param number: of the request, different from all others
        :param cancel: ends the waiting once set
        :raises StoreError: the waiting was ended (``build-cancelled``)
        """
        self._take(number, cancel)
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _take(self, number: int, cancel: threading.Event) -> None:
        with self._changed:
            heapq.heappush(self._waiting, number)
            try:
                while not (self._free and self._waiting[0] == number):
                    if cancel.is_set():
                        break
                    self._changed.wait(POLL_SECONDS)
                if cancel.is_set():
                    raise StoreError(
                        "stopped while waiting for other builds", code="build-cancelled"
                    )
                self._free -= 1
            finally:
                self._waiting.remove(number)
                heapq.heapify(self._waiting)
                self._changed.notify_all()
