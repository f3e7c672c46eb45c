"""What a container prints: copied to the worker's log, the end of it remembered.

Runs in worker processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import IO, Final

TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 20
STANDARD_ERROR: Final = 2
WAIT_SECONDS: Final = 5.0


class StderrPump:
    """Copies a child's standard error to the worker's, and remembers the end."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._tail = b""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> threading.Thread:
        """Begin to copy, in a thread, if that has not been done. Until then, what comes
        waits in the pipe."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()
        return self._thread

    def forget(self) -> bytes:
        """From here on, remember only what comes; returns what was there."""
        with self._lock:
            before, self._tail = self._tail, b""
        return before

    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        with self._lock:
            return shown(self._tail)

    def add(self, chunk: bytes) -> None:
        """Take what came by another way."""
        with self._lock:
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, chunk)

    def finish(self) -> None:
        """Wait a little for the rest."""
        self.start().join(WAIT_SECONDS)

    def _copy(self) -> None:
        with self._source as source:
            while chunk := source.read(65536):
                self.add(chunk)


def shown(tail: bytes) -> tuple[str, ...]:
    """The last lines of what a process wrote."""
    return lines(tail.decode("utf-8", "replace"))


def lines(text: str) -> tuple[str, ...]:
    """The last lines of a text, without Apptainer's own remarks."""
    found = [line for line in text.splitlines() if not line.startswith("INFO:    ")]
    return tuple(found[-TAIL_LINES:])
