"""The warm containers of one worker process.

Runs in worker processes. Tasks with the same run key reuse a container, whose Python
has its modules imported already; the least recently used one makes room for another.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from globus_compute_apptainer.worker.container import Container

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


class WarmPool:
    """Containers by key, at most so many idle ones besides those in use.

    Safe for threads: a container in use belongs to one of them, and a second with the
    same key gets a container of its own. Safe for forks: a child starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Hashable, Container] = {}  # least recently used first
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._start_empty)

    @contextmanager
    def lease(
        self, key: Hashable, start: Callable[[], Container], limit: int
    ) -> Iterator[Container]:
        """A running container for ``key``, started if there is none.

        After any exception it is closed: its answer may be yet to come.

        :param limit: how many containers to keep, this one included; 0: this one is
            new, and closed after use
        """
        container = self._take(key, room_for=limit - 1) if limit else None
        container = container or start()
        try:
            yield container
        except BaseException:
            container.close()
            raise
        self._give_back(key, container, limit)

    def close(self) -> None:
        """End all idle containers."""
        with self._lock:
            leaving, self._idle = list(self._idle.values()), {}
        for container in leaving:
            container.close()

    def _take(self, key: Hashable, *, room_for: int) -> Container | None:
        with self._lock:
            container = self._idle.pop(key, None)
            leaving = self._without_room(room_for) if self._idle else []
        if container is not None and not container.alive:
            leaving.append(container)
            container = None
        for old in leaving:
            old.close()
        return container

    def _without_room(self, room_for: int) -> list[Container]:
        """Take out what has died, and what is one too many."""
        dead = [old for old, idle in self._idle.items() if not idle.alive]
        leaving = [self._idle.pop(old) for old in dead]
        surplus = list(self._idle)[: max(len(self._idle) - room_for, 0)]
        return leaving + [self._idle.pop(old) for old in surplus]

    def _give_back(self, key: Hashable, container: Container, limit: int) -> None:
        with self._lock:
            keep = limit > 0 and container.alive and key not in self._idle
            if keep:
                self._idle[key] = container
        if not keep:
            container.close()

    def _start_empty(self) -> None:
        inherited = list(self._idle.values())
        self._lock = threading.Lock()
        self._idle = {}
        for container in inherited:
            container.abandon()
