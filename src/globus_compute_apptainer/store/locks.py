"""The right to do one thing at a time, among threads, processes and machines.

Runs in the endpoint process and in ``gc-apptainer``. A lock is a directory of numbered
records, of which the highest counts::

    LOCK/00000007         who holds it; touched every few seconds while it is held
    LOCK/00000007.free    nobody does; the next one to hold it makes 00000008
    LOCK/.progress        what its holder is doing, for those who wait

To hold it is to have made the next record, which the file system lets one process do
(a hard link, or ``O_EXCL`` where there are none): that much works on every file
system, where ``flock`` may be missing or hold for one machine only. A number is used
once, so that no record of a living holder is ever moved or overwritten by one who
thinks it dead.

Guarantees:

- One holder at a time, as long as no holder is wrongly taken for dead. On one machine
  (and in one process-id namespace) none is: death is proven.
- The death of a holder frees the lock: at once on its machine, after
  :attr:`.Timing.expiry` of silence elsewhere.
- No clock decides alone: a holder whose sign of life is seen to change is alive.
- Removing a lock that nobody holds disturbs nobody who takes it at that moment.

Non-guarantees: a holder on another machine that is silent for longer (stopped, cut off
from the file system) and then comes back finds itself replaced; it notices at
:meth:`Held.check` and not before. Who waits longest is not served first. Not reentrant.
On a network file system a machine may for some seconds take a directory that was just
removed for the lock still; it, too, notices at :meth:`Held.check`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.held import PROGRESS, Held, News
from globus_compute_apptainer.store.litter import delete
from globus_compute_apptainer.store.presence import HERE, Presence, file_system_time
from globus_compute_apptainer.store.records import Records, numbers, read, record

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""How long after its release a lock may stay unnoticed by those who wait."""

_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_DELETIONS: Final = 5

__all__ = ["Held", "News", "hold", "hold_any", "ignore", "is_free", "remove"]


def ignore(_: object) -> None:
    """For those who want no news, or leave nothing to clear."""


@contextlib.contextmanager
def hold(
    folder: Path,
    *,
    cancel: threading.Event,
    timeout: float,
    presence: Presence = HERE,
    watch: Callable[[News], None] = ignore,
    clear: Callable[[Owner], None] = ignore,
) -> Iterator[Held]:
    """Hold the lock ``folder``; waits until it is free, up to ``timeout`` seconds.

    Modes follow the umask, so that all who share the cache may lock it.

    :param cancel: ends the waiting once set
    :param watch: gets what the holder tells while this waits, in this thread
    :param clear: called with a dead holder once its lock was taken over
    :raises StoreError: the waiting was ended (``build-cancelled``) or took too long
        (``lock-timeout``), or the directory cannot be written to
    """
    lock = _Lock(folder, presence)
    deadline = time.monotonic() + timeout
    with files.translated(folder):
        while (held := lock.attempt(clear)) is None:
            lock.pass_on(watch)
            if time.monotonic() >= deadline:
                raise lock.timed_out(timeout)
            _wait(cancel, presence, folder)
    try:
        yield held
    finally:
        held.release()


@contextlib.contextmanager
def hold_any(
    folders: Sequence[Path], *, cancel: threading.Event, presence: Presence = HERE
) -> Iterator[Held]:
    """Hold whichever lock is free first; waits for as long as it takes.

    :raises StoreError: as :func:`hold` does
    """
    waiting = [_Lock(folder, presence) for folder in folders]
    with files.translated(folders[0]):
        while (held := _first(waiting)) is None:
            _wait(cancel, presence, folders[0])
    try:
        yield held
    finally:
        held.release()


def remove(folder: Path, aside: Path, presence: Presence = HERE) -> bool:
    """Remove a lock that nobody holds, with all its records.

    It leaves its place by one rename, while this process holds it. Who looked into it
    before can make no record there that counts; who comes later makes it anew.

    :param aside: a new name on the same file system, where it is until it is deleted
    :returns: False where somebody holds it, or may (a record of another machine's
        process, however old), or it cannot be moved
    """
    try:
        held = _Lock(folder, presence).attempt(ignore)
        if held is None:
            return False
        try:
            folder.rename(aside)
        except OSError:
            held.release()
            raise
    except OSError as error:
        log.debug("the lock %s stays: %s", folder, error)
        return False
    held.forget()
    for _ in range(_DELETIONS):  # who came too late is about to withdraw its record
        delete(aside)
        if not aside.exists():
            break
    return True


def is_free(folder: Path, presence: Presence = HERE) -> bool:
    """Whether nobody holds a lock, as far as one look can tell; changes nothing.

    :raises OSError: it cannot be read, or is gone
    """
    return _Lock(folder, presence).is_free()


def _first(waiting: Sequence[_Lock]) -> Held | None:
    attempts = (lock.attempt(ignore) for lock in waiting)
    return next((held for held in attempts if held is not None), None)


def _wait(cancel: threading.Event, presence: Presence, folder: Path) -> None:
    if cancel.wait(presence.timing.poll):
        raise StoreError(
            "stopped while waiting for another build of this image",
            code="build-cancelled",
            path=str(folder),
        )


@dataclass
class _Seen:
    """The record that stands in the way, and since when it has not changed."""

    number: int
    state: tuple[int, int]
    since: float


class _Lock:
    """One that is waited for."""

    def __init__(self, folder: Path, presence: Presence) -> None:
        self._folder, self._presence = folder, presence
        self._seen: _Seen | None = None
        self._passed_on = ""

    def attempt(self, clear: Callable[[Owner], None]) -> Held | None:
        """Hold it, if nobody does; its directory is made where it is missing."""
        try:
            with Records.opened(self._folder) as records:
                held, before, dead = self._attempt(records)
        except OSError as error:
            if error.errno in _GONE:  # it was removed this moment: made anew next time
                return None
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
        if held is not None:
            self._tidy(before, dead, clear)
        return held

    def is_free(self) -> bool:
        before = numbers(self._folder)
        top = max(before, default=0)
        return not before or before[top] or self._is_over(top)[0]

    def _attempt(
        self, records: Records
    ) -> tuple[Held | None, Mapping[int, bool], Owner | None]:
        """What is held, the records before it, and the holder that died."""
        before = records.numbers()
        top = max(before, default=0)
        dead: Owner | None = None
        if before and not before[top]:
            over, dead = self._is_over(top)
            if not over:
                return None, before, None
        name = secrets.token_hex(8)
        # Other threads of this process tell by it that somebody holds the record.
        self._presence.begin(name, lambda: None)
        try:
            made = records.make(top + 1, self._told(name))
            made = made and _is_next(records, before, top + 1)
        except BaseException:
            self._presence.end(name)
            raise
        if not made:
            self._presence.end(name)
            return None, before, None
        return Held(self._folder, top + 1, name, self._presence), before, dead

    def pass_on(self, watch: Callable[[News], None]) -> None:
        """Tell what the holder told, if that is new."""
        try:
            text = (self._folder / PROGRESS).read_text(encoding="utf-8")
            if text == self._passed_on:
                return
            self._passed_on = text
            told = json.loads(text)
            if self._seen is not None and told["number"] == self._seen.number:
                watch(told["news"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    def timed_out(self, seconds: float) -> StoreError:
        holder = read(self._folder / record(self._seen.number if self._seen else 0))
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another"
        return StoreError(
            f"another process has held this image's lock for {seconds:g} s ({who})",
            hint="it may be stopped or hang: look at that process, or submit again",
            code="lock-timeout",
            path=str(self._folder),
        )

    def _told(self, name: str) -> str:
        """What a record says: who made it."""
        told = {
            "owner": str(self._presence.owner()),
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        return json.dumps(told)

    def _is_over(self, number: int) -> tuple[bool, Owner | None]:
        """Whether a record's process does not hold the lock any more; and which one
        it was, if it is dead."""
        path = self._folder / record(number)
        try:
            status = path.stat()
        except FileNotFoundError:  # released, or taken over, this moment
            return False, None
        state = (status.st_ino, status.st_mtime_ns)
        if self._seen is None or (self._seen.number, self._seen.state) != (
            number,
            state,
        ):
            self._seen = _Seen(number, state, self._presence.clock())
        told, here = read(path), self._presence.owner()
        owner = Owner.parse(told["owner"]) if told else None
        if owner is not None:
            if owner == here:
                return not self._presence.gives(told["name"]), None
            if owner.is_dead(here):
                return True, owner
            if owner.is_near(here):
                return False, None
        silent = self._is_silent(
            self._presence.clock() - self._seen.since, status.st_mtime
        )
        return silent, owner if silent else None

    def _is_silent(self, watched: float, changed: float) -> bool:
        timing = self._presence.timing
        if watched >= timing.expiry:
            return True
        if watched < timing.confirm:
            return False
        return file_system_time(self._folder) - changed >= timing.expiry

    def _tidy(
        self,
        before: Mapping[int, bool],
        dead: Owner | None,
        clear: Callable[[Owner], None],
    ) -> None:
        for number, free in before.items():
            with contextlib.suppress(OSError):
                (self._folder / record(number, free=free)).unlink()
        for path in self._folder.glob(".*"):
            owner = Owner.of_name(path.name)
            if dead is not None if owner is None else owner.is_dead():
                with contextlib.suppress(OSError):
                    path.unlink()
        if dead is not None:
            log.info("took over %s from a process that died", self._folder)
            clear(dead)


def _is_next(records: Records, before: Mapping[int, bool], number: int) -> bool:
    """Whether nobody came and went between the look and the making, and the lock was
    not removed; else the record is withdrawn."""
    # In this order: once the directory is deleted, another may look the same.
    in_place, after = records.are_in_place(), records.numbers()
    nobody = after.get(number) is False and after.keys() <= before.keys() | {number}
    if in_place and nobody:
        return True
    records.withdraw(number)
    return False
