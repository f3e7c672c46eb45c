"""This process in a cache: who it is, and the sign of life that it gives.

Runs in the endpoint process and in ``gc-apptainer``. Locks and leases of a living
process have their files touched, by one thread for all of them, as long as any is
held. A process of another machine cannot be proven dead; its silence is what tells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.owners import Owner, owned_name

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

Beat = Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """How long silence may last; all in seconds. One for all who share a cache.

    :param beat: between two signs of life
    :param expiry: silence after which the holder of a lock counts as dead, where
        nothing can be proven. Far above ``beat``: a network file system may show
        another machine's times a minute late
    :param confirm: a holder that is silent for so long by the file system's clock is
        watched this long before it counts as dead, so that a clock that jumps
        condemns nobody who lives
    :param lease_expiry: silence after which a lease of another machine has no effect
    :param poll: between two looks at a lock that somebody holds
    """

    beat: float = 15.0
    expiry: float = 180.0
    confirm: float = 45.0
    lease_expiry: float = 3600.0
    poll: float = 0.1


class Presence:
    """Signs of life of one process; safe for threads, and a forked child starts anew.

    :param owner: tells who this process is
    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        timing: Timing | None = None,
        owner: Callable[[], Owner] = Owner.current,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timing, self.clock = timing or Timing(), clock
        self._owner = owner
        self._running = False
        self._start_anew()
        _ALL.add(self)

    def owner(self) -> Owner:
        return self._owner()

    def begin(self, name: str, beat: Beat) -> None:
        """Call ``beat`` every so often from now on, until :meth:`end`.

        What it raises is logged and changes nothing.
        """
        with self._lock:
            self._beats[name] = beat
            if self._running:
                return
            try:
                self._thread().start()
                self._running = True
            except RuntimeError:  # the machine has no thread left
                log.warning("no sign of life can be given: %s", name)

    def end(self, name: str) -> None:
        """``beat`` is not called again, but may be running at this moment."""
        with self._lock:
            self._beats.pop(name, None)

    @staticmethod
    def gives(name: str) -> bool:
        """Whether this process gives a sign of life under this name."""
        return any(name in presence._beats for presence in list(_ALL))

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[str, Beat] = {}
        self._running = False

    def _thread(self) -> threading.Thread:
        return threading.Thread(target=self._give, name="cache-presence", daemon=True)

    def _give(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self.timing.beat)
            with self._lock:
                beats = list(self._beats.values())
                if not beats:
                    self._running = False
                    return
            for beat in beats:
                self._one(beat)

    def _one(self, beat: Beat) -> None:
        try:
            beat()
        except OSError as error:
            log.debug("a sign of life failed: %s", error)
        except Exception:
            log.exception("a sign of life failed")


def _start_all_anew() -> None:
    for presence in list(_ALL):
        presence._start_anew()


_ALL: Final[weakref.WeakSet[Presence]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_start_all_anew)

HERE: Final = Presence()
"""This process, with the timing that all processes use."""


def file_system_time(folder: Path) -> float:
    """The clock by which the file system of ``folder`` dates files, seconds.

    It is the server's on a network file system, and what times of files are compared
    with: this machine's own clock may be hours off.

    :raises OSError: nothing can be written there
    """
    probe = folder / owned_name(".clock")
    with probe.open("xb") as file:
        try:
            return os.fstat(file.fileno()).st_mtime
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
