"""Results that leave by the endpoint's own result store.

Runs in the endpoint process. A resubmitted task has no future of the interchange's that
would carry its result. Upstream's interchange sends what it finds in
``unacked_results`` below the endpoint's directory, which it looks through every second
and at every start: its ``endpoint/result_store.py``. It skips names that begin with a
dot, so that a result appears whole by being renamed.

Guarantees: a result is sent at least once, also where this process is killed after
:meth:`Outbox.put`, or the disk was full for a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

FOLDER: Final = "unacked_results"
#: The interchange removes a result before the broker has confirmed it. This long after,
#: it counts as sent.
CONFIRMED_SECONDS: Final = 5.0


class Outbox:
    """The result store of one endpoint; safe between threads.

    :param folder: made when it is first needed
    :param clock: seconds, monotonic
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._unwritten: dict[uuid.UUID, bytes] = {}
        self._stored: set[uuid.UUID] = set()
        self._taken: dict[uuid.UUID, float] = {}

    def put(self, task_id: uuid.UUID, packed_result: bytes) -> None:
        """Have a result sent. What cannot be written now is kept for :meth:`retry`."""
        with self._lock:
            self._unwritten[task_id] = packed_result
        self.retry()

    def retry(self) -> None:
        """Write what could not be written before; does not raise."""
        with self._lock:
            for task_id, packed_result in list(self._unwritten.items()):
                try:
                    self._write(str(task_id), packed_result)
                except OSError as error:
                    log.error("task %s: its result is not stored: %s", task_id, error)
                    return
                del self._unwritten[task_id]
                self._stored.add(task_id)

    def unwritten(self) -> int:
        """Results that are in memory only."""
        return len(self._unwritten)

    def unsent(self) -> int:
        """Results of this process that the service may not have; reads the folder."""
        with self._lock:
            now = self._clock()
            for task_id in list(self._stored):
                if not (self._folder / str(task_id)).exists():
                    self._stored.discard(task_id)
                    self._taken[task_id] = now
            for task_id, when in list(self._taken.items()):
                if now - when >= CONFIRMED_SECONDS:
                    del self._taken[task_id]
            return len(self._unwritten) + len(self._stored) + len(self._taken)

    def _write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        new = self._folder / f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
                file.write(content)
            new.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
