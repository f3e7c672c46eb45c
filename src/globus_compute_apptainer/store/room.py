"""Making room: what has not been used for longest goes first, and nothing in use.

Runs in the endpoint process and in ``gc-apptainer``. What goes is found by names, sizes
and times alone: no manifest is read, but for bases, so that a pass over a cache of many
thousand images takes a second.

Guarantees: nothing is removed that a living process holds a lease on (images in use,
bases and layers of running builds), nor a base that an image in the cache was made of.
A thing leaves its place by one rename; a lease that was taken meanwhile brings it back.

Non-guarantees: things may be younger than they look, by :data:`TOUCH_SECONDS`. What
is in use may alone be more than the limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.leases import Leases

log = logging.getLogger(__name__)

TOUCH_SECONDS: Final = 600.0
"""How often, at most, one process writes down that it uses a thing."""

IMAGES: Final = "images"
BASES: Final = "bases"
LAYERS: Final = "layers"
PACKAGES: Final = "packages"
QUARANTINE: Final = "quarantine"

_BASE: Final = re.compile(rb'"base_digest": "sha256:([0-9a-f]{64})"')
_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Thing:
    """Something that a cache holds, and that can go as a whole.

    :param kind: the directory it is in: ``images``, ``bases``, ``layers``,
        ``packages`` or ``quarantine``
    :param size: bytes
    :param used: when it was last used, seconds by the file system's clock
    """

    kind: str
    name: str
    path: Path
    size: int
    used: float

    @property
    def lease(self) -> str:
        """The name under which it is leased."""
        return lease_name(self.kind, self.name)


@dataclass(frozen=True)
class Freed:
    """What a pass did, or would do.

    :param before: bytes in all, before
    :param things: what went, the longest unused first
    :param left: bytes in all, after
    """

    before: int
    things: tuple[Thing, ...]
    left: int

    @property
    def size(self) -> int:
        """Bytes that went."""
        return sum(thing.size for thing in self.things)


def lease_name(kind: str, name: str) -> str:
    """What a lease on a thing is called."""
    return kind if kind == PACKAGES else f"{kind}-{name}"


class Room:
    """The things of one cache.

    :param top: the cache's versioned directory
    """

    def __init__(self, top: Path, leases: Leases) -> None:
        self._top, self._leases = top, leases
        self._tmp = top / "tmp"
        self._packages: tuple[float, Thing] | None = None

    def things(self) -> list[Thing]:
        """All of them, in no order.

        :raises StoreError: the cache cannot be read
        """
        with files.translated(self._top):
            found = [
                *_shelf(self._top, IMAGES),
                *_shelf(self._top, BASES),
                *_shelf(self._top, LAYERS),
                *_things(QUARANTINE, self._top / QUARANTINE),
            ]
            if (self._top / PACKAGES).is_dir():
                found.append(self._package_cache())
        return found

    def make(
        self,
        limit: int,
        *,
        dry: bool = False,
        gone: Callable[[Thing, Path], None] = lambda _thing, _aside: None,
    ) -> Freed:
        """Remove things until the others have ``limit`` bytes in all, if that can be.

        One process at a time, please: see :meth:`.Store.make_room`.

        :param dry: only say what would go
        :param gone: called with each thing when it is out of its place, and with
            where it lies until it is deleted
        :raises StoreError: the cache cannot be read or written
        """
        things = sorted(self.things(), key=_order)
        before = sum(thing.size for thing in things)
        gone_now: dict[Thing, None] = {}
        with files.translated(self._top):
            in_use = self._leases.in_use() if before > limit else set()
            bases = _Bases(self._top)

            def may_go(thing: Thing) -> bool:
                return thing.lease not in in_use and not bases.needs(thing)

            left = before
            # The second time for bases whose images went after they were looked at.
            for thing in (*things, *(t for t in things if t.kind == BASES)):
                if left <= limit:
                    break
                if thing in gone_now or not may_go(thing):
                    continue
                if dry or self._remove(thing, gone):
                    bases.forget(thing)
                    left -= thing.size
                    gone_now[thing] = None
        return Freed(before, tuple(gone_now), left)

    def _package_cache(self) -> Thing:
        """As it was some minutes ago: it may have very many files."""
        known, now = self._packages, time.monotonic()
        if known is None or now - known[0] > TOUCH_SECONDS:
            path = self._top / PACKAGES
            known = now, Thing(PACKAGES, PACKAGES, path, *_measured(path))
            self._packages = known
        return known[1]

    def _remove(self, thing: Thing, gone: Callable[[Thing, Path], None]) -> bool:
        """False where a lease was taken meanwhile, or somebody else removed it."""
        aside = self._tmp / owned_name("removed")
        self._tmp.mkdir(parents=True, exist_ok=True)
        try:
            thing.path.rename(aside)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("cannot remove %s: %s", thing.path, error)
            return False
        if thing.lease in self._leases.in_use():
            self._bring_back(thing, aside)
            return False
        gone(thing, aside)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _bring_back(self, thing: Thing, aside: Path) -> None:
        try:
            aside.rename(thing.path)
        except OSError:  # the one who wants it has made it anew
            shutil.rmtree(aside, ignore_errors=True)


class _Bases:
    """Which bases the images in a cache were made of; asked once, when needed."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._of: dict[str, list[str]] | None = None
        self._gone: set[str] = set()

    def needs(self, thing: Thing) -> bool:
        if thing.kind != BASES:
            return False
        if self._of is None:
            self._of = _images_by_base(self._top)
        return any(name not in self._gone for name in self._of.get(thing.name, ()))

    def forget(self, thing: Thing) -> None:
        if thing.kind == IMAGES:
            self._gone.add(thing.name)


def _order(thing: Thing) -> tuple[int, float]:
    """Damaged images first, the cache of packages last."""
    first = {QUARANTINE: 0, PACKAGES: 2}
    return first.get(thing.kind, 1), thing.used


def _images_by_base(top: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in _entries(top / IMAGES):
        with contextlib.suppress(OSError):
            text = Path(entry.path, _MANIFEST).read_bytes()
            for base in _BASE.findall(text):
                found.setdefault(base.decode(), []).append(entry.name)
    return found


def _shelf(top: Path, kind: str) -> Iterator[Thing]:
    for entry in _entries(top / kind):
        yield from _thing(kind, entry)


def _entries(shelf: Path) -> Iterator[os.DirEntry[str]]:
    """The directories of a shelf, whose names are spread over others."""
    for first in _listed(shelf / "sha256"):
        yield from _listed(Path(first.path))


def _things(kind: str, folder: Path) -> Iterator[Thing]:
    for entry in _listed(folder):
        yield from _thing(kind, entry)


def _thing(kind: str, entry: os.DirEntry[str]) -> Sequence[Thing]:
    size = 0
    try:
        with os.scandir(entry.path) as inside:
            for file in inside:
                size += file.stat(follow_symlinks=False).st_size
        used = entry.stat(follow_symlinks=False).st_mtime
    except OSError:  # it has just gone
        return ()
    return (Thing(kind, entry.name, Path(entry.path), size, used),)


def _listed(folder: Path) -> Collection[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _measured(folder: Path) -> tuple[int, float]:
    """Bytes of a whole tree, files with several names counted once, and its time."""
    size, seen = 0, set()
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(place, name).lstat()
                if status.st_nlink > 1:
                    if status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                size += status.st_size
    return size, folder.stat().st_mtime
