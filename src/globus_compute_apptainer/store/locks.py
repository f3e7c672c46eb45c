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

Non-guarantees: a holder on another machine that is silent for longer (stopped, cut off
from the file system) and then comes back finds itself replaced; it notices at
:meth:`Held.check` and not before. Who waits longest is not served first. Not reentrant.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner, owned_name
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.presence import HERE, Presence, file_system_time

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""How long after its release a lock may stay unnoticed by those who wait."""

TELL_SECONDS: Final = 0.5
PROGRESS: Final = ".progress"
RECORD: Final = ".record"
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
)

News = Mapping[str, Any]
_RECORD: Final = re.compile(r"(\d{8,})(\.free)?\Z")


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
        folder.mkdir(parents=True, exist_ok=True)
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
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        while (held := _first(waiting)) is None:
            _wait(cancel, presence, folders[0])
    try:
        yield held
    finally:
        held.release()


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


class Held:
    """A lock that is held; made by :func:`hold`."""

    def __init__(
        self, folder: Path, number: int, name: str, presence: Presence
    ) -> None:
        self._folder, self._number, self._name = folder, number, name
        self._presence, self._told, self._pid = presence, 0.0, os.getpid()
        self._path = folder / _record(number)
        presence.begin(name, lambda: os.utime(self._path))

    def check(self) -> None:
        """For what must not be done by two.

        :raises StoreError: another process has taken the lock over (``lock-lost``)
        """
        with files.translated(self._folder):
            records = _records(self._folder)
        if max(records, default=0) != self._number or records[self._number]:
            raise StoreError(
                "another process took this image's lock over: this one was silent"
                " for too long",
                hint="is the machine, or the file system of `cache_dir`, overloaded?",
                code="lock-lost",
                path=str(self._folder),
            )

    def tell(self, news: News, *, at_once: bool = False) -> None:
        """Let those who wait know; most of what is told in quick succession is
        dropped. Never raises for a file system that is full or gone.

        :param news: plain JSON
        :param at_once: this one is not dropped
        """
        now = time.monotonic()
        if not at_once and now - self._told < TELL_SECONDS:
            return
        self._told = now
        text = json.dumps({"number": self._number, "news": dict(news)})
        new = self._folder / owned_name(PROGRESS)
        with contextlib.suppress(OSError):
            try:
                new.write_text(text, encoding="utf-8")
                new.replace(self._folder / PROGRESS)
            finally:
                new.unlink(missing_ok=True)

    def release(self) -> None:
        """Free it; a forked child frees nothing of its parent's."""
        if os.getpid() != self._pid:
            return
        try:
            with contextlib.suppress(OSError):
                (self._folder / PROGRESS).unlink()
            self._path.rename(self._path.with_suffix(".free"))
        except OSError as error:
            # This process, asked again, knows that it does not hold it.
            log.warning("the lock %s cannot be released: %s", self._path, error)
        finally:
            self._presence.end(self._name)


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
        """Hold it, if nobody does."""
        before = _records(self._folder)
        top = max(before, default=0)
        dead: Owner | None = None
        if before and not before[top]:
            over, dead = self._is_over(top)
            if not over:
                return None
        name = secrets.token_hex(8)
        # Other threads of this process tell by it that somebody holds the record.
        self._presence.begin(name, lambda: None)
        try:
            made = self._make(top + 1, name) and self._is_next(before, top + 1)
        except BaseException:
            self._presence.end(name)
            raise
        if not made:
            self._presence.end(name)
            return None
        held = Held(self._folder, top + 1, name, self._presence)
        self._tidy(before, dead, clear)
        return held

    def _is_next(self, before: Mapping[int, bool], number: int) -> bool:
        """Whether nobody came and went between the look and the making; if somebody
        did, the record is withdrawn."""
        after = _records(self._folder)
        if after.get(number) is False and after.keys() <= before.keys() | {number}:
            return True
        (self._folder / _record(number)).unlink(missing_ok=True)
        return False

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
        holder = _read(self._folder / _record(self._seen.number if self._seen else 0))
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another"
        return StoreError(
            f"another process has held this image's lock for {seconds:g} s ({who})",
            hint="it may be stopped or hang: look at that process, or submit again",
            code="lock-timeout",
            path=str(self._folder),
        )

    def _make(self, number: int, name: str) -> bool:
        """Make the next record, unless another process is quicker."""
        told = {
            "owner": str(self._presence.owner()),
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        whole, path = self._folder / owned_name(RECORD), self._folder / _record(number)
        try:
            whole.write_text(json.dumps(told), encoding="utf-8")
            return _linked(whole, path)
        finally:
            whole.unlink(missing_ok=True)

    def _is_over(self, number: int) -> tuple[bool, Owner | None]:
        """Whether a record's process does not hold the lock any more; and which one
        it was, if it is dead."""
        path = self._folder / _record(number)
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
        told, here = _read(path), self._presence.owner()
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
                (self._folder / _record(number, free=free)).unlink()
        for path in self._folder.glob(".*"):
            owner = Owner.of_name(path.name)
            if dead is not None if owner is None else owner.is_dead():
                with contextlib.suppress(OSError):
                    path.unlink()
        if dead is not None:
            log.info("took over %s from a process that died", self._folder)
            clear(dead)


def _linked(whole: Path, path: Path) -> bool:
    """Give a file that is whole its name, unless another has that name.

    Without hard links a name is made first and the content follows: a process that is
    killed in between leaves a record that says nothing, and counts as dead late.
    """
    try:
        os.link(whole, path)
    except FileExistsError:
        # A network file system may have lost its own answer and asked again.
        return whole.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _copied(whole, path)
    return True


def _copied(whole: Path, path: Path) -> bool:
    try:
        with path.open("xb") as file:
            file.write(whole.read_bytes())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _records(folder: Path) -> dict[int, bool]:
    """The records' numbers, and whether each is free."""
    found: dict[int, bool] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _RECORD.match(entry.name):
                number = int(match[1])
                found[number] = bool(match[2]) or found.get(number, False)
    return found


def _record(number: int, *, free: bool = False) -> str:
    return f"{number:08d}{'.free' if free else ''}"


def _read(path: Path) -> dict[str, Any]:
    """What a record says; nothing where it is damaged or not yet written."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(told[key]) for key in ("owner", "name", "host", "pid")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
