"""Who uses what of a cache at this moment, so that none of it is removed.

Runs in the endpoint process and in ``gc-apptainer``. A lease is an empty file in a
directory of its process, which is touched while the process lives::

    v2/leases/lease-OWNER-1234abcd/images-ab12…    also bases-…, layers-…, packages

Guarantees: a lease has effect once :meth:`Leases.hold` has returned, until it is let
go, or until its process is proven dead; on another machine, until it has been silent
for :attr:`.Timing.lease_expiry`. Who takes a lease must look *afterwards* whether what
it wants is still there. Threads of one process may hold the same thing any number of
times.

Non-guarantees: where the cache cannot be written to (read-only, full) there is no
lease, and what is used may be removed by whoever can write. A lease that was let go
stays for some seconds, so that one who uses an image again and again writes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.owners import Owner, owned_name
from globus_compute_apptainer.store.litter import delete
from globus_compute_apptainer.store.presence import HERE, Presence, file_system_time

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

FOLDER: Final = "leases"
_letting_go: Final = threading.Lock()


class Lease:
    """One use of one thing; :meth:`let_go` may be called again and from any thread.

    :ivar is_first: whether nobody in this process used the thing when this was taken
    """

    __slots__ = ("_leases", "_name", "is_first")

    def __init__(
        self, leases: Leases | None, name: str, *, is_first: bool = True
    ) -> None:
        self._leases, self._name, self.is_first = leases, name, is_first

    @classmethod
    def of_nothing(cls) -> Lease:
        """For what needs none."""
        return cls(None, "")

    def let_go(self) -> None:
        with _letting_go:
            leases, self._leases = self._leases, None
        if leases is not None:
            leases._let_go(self._name)


class Leases:
    """The leases of this process in one cache. Making one touches nothing on disk.

    :param top: the cache's versioned directory
    """

    def __init__(self, top: Path, presence: Presence = HERE) -> None:
        self._folder, self._presence = top / FOLDER, presence
        self._name = f"leases of {self._folder} {id(self)}"
        self._warned = False
        self._start_anew()
        _ALL.add(self)

    def hold(self, name: str) -> Lease:
        """Use something until the lease is let go. Never raises.

        :param name: such as ``images-ab12…``
        """
        with self._lock:
            self._counts[name] += 1
            is_first, written = self._counts[name] == 1, name in self._written
        if not written:
            self._write(name)
        return Lease(self, name, is_first=is_first)

    def use(self, name: str) -> None:
        """Use something for the builds that run now in this process, if any do."""
        with self._lock:
            self._used[name] = time.monotonic()
        self._write(name)

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """While this is entered, what :meth:`use` was called for stays in use."""
        key = object()
        with self._lock:
            self._building[key] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._building.pop(key, None)

    def in_use(self) -> set[str]:
        """The names of everything that a living process holds.

        Also removes the leases of those who are proven dead.

        :raises OSError: they cannot be read
        """
        here, now = self._presence.owner(), _Later(self._folder)
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as all_:
            for entry in all_:
                owner = Owner.of_name(entry.name)
                if owner is None:
                    continue
                if self._is_over(owner, here, entry, now):
                    delete(Path(entry.path))
                    continue
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found.update(os.listdir(entry.path))  # noqa: PTH208
        return found

    def close(self) -> None:
        """Let go of all at once, and leave nothing behind."""
        self._presence.end(self._name)
        with self._lock:
            self._counts.clear()
            self._used.clear()
            self._written.clear()
        shutil.rmtree(self._mine, ignore_errors=True)

    def _is_over(
        self, owner: Owner, here: Owner, entry: os.DirEntry[str], now: _Later
    ) -> bool:
        if owner.is_dead(here):
            return True
        if owner.is_near(here):
            return False
        try:
            silent = now() - entry.stat(follow_symlinks=False).st_mtime
        except OSError:
            return False
        return silent > self._presence.timing.lease_expiry

    def _let_go(self, name: str) -> None:
        with self._lock:
            if not self._counts[name]:  # all were let go at once
                return
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
                if name in self._written:
                    self._written[name] = time.monotonic()

    def _write(self, name: str) -> None:
        """Have the file there; a cache that takes no file has no leases."""
        with self._lock:
            if name in self._written:
                return
            try:
                self._put(name)
            except OSError as error:
                if not self._warned:
                    log.warning("no lease can be written: %s", error)
                self._warned = True
                return
            self._written[name] = time.monotonic()
        self._presence.begin(self._name, self._beat)

    def _put(self, name: str) -> None:
        path = self._mine / name
        with contextlib.suppress(FileExistsError):
            try:
                path.touch(exist_ok=False)
            except FileNotFoundError:
                self._mine.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)

    def _beat(self) -> None:
        """A sign of life; and what nobody uses any more goes."""
        with self._lock:
            for name in self._unused():
                (self._mine / name).unlink(missing_ok=True)
                self._written.pop(name, None)
                self._used.pop(name, None)
            if not self._written:
                self._presence.end(self._name)
                with contextlib.suppress(OSError):
                    self._mine.rmdir()
                return
            if not self._mine.is_dir():  # taken for dead
                for name in self._written:
                    self._put(name)
            os.utime(self._mine)

    def _unused(self) -> list[str]:
        """What is written for nobody, and has been for a while."""
        oldest = min(self._building.values(), default=float("inf"))
        before = time.monotonic() - self._presence.timing.beat / 2

        def idle(name: str, since: float) -> bool:
            used = self._used.get(name)
            built_on = used is not None and used >= oldest
            return not self._counts[name] and not built_on and since <= before

        # A Counter makes no entry when it is asked.
        return [n for n, since in self._written.items() if idle(n, since)]

    def _start_anew(self) -> None:
        """Also in a forked child, which has no leases of its own yet."""
        self._lock = threading.Lock()
        # One for each of these objects: what another one lets go is not this one's.
        self._mine = self._folder / owned_name("lease", self._presence.owner())
        self._counts: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._building: dict[object, float] = {}
        self._written: dict[str, float] = {}


def _start_all_anew() -> None:
    for leases in list(_ALL):
        leases._start_anew()


_ALL: Final[weakref.WeakSet[Leases]] = weakref.WeakSet()
os.register_at_fork(after_in_child=_start_all_anew)


class _Later:
    """The file system's clock, asked when it is needed, and once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now: float | None = None

    def __call__(self) -> float:
        if self._now is None:
            self._now = file_system_time(self._folder)
        return self._now
