"""What a cache holds of the past: logs of old builds, locks that nobody takes any more.

Runs in the endpoint process and in ``gc-apptainer``. Neither counts as part of the
cache's size, and each is small; but there is one for every build, or spec, that there
ever was.

Guarantees: a log goes when it was last written to more than :data:`OLD_SECONDS` ago and
is not the one that a spec's entry (the manifest of its image) or a remembered failure
names. A lock goes when nobody has taken or released it for as long and nobody holds
it; who takes it at that moment is not disturbed, see :func:`.locks.remove`. Safe to run
from several processes at once.

Non-guarantees: what cannot be read or removed stays, without an error. A lock whose
last holder, on another machine, died with it stays until somebody takes it again. The
log of an image that another one has replaced for its spec goes, though the image may
still lie in the cache.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store import locks
from globus_compute_apptainer.store.presence import HERE, Presence, file_system_time

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD_SECONDS: Final = 30 * 86400.0
EVERY_SECONDS: Final = 86400.0
"""How often it is done by itself, by one of all who share the cache."""

_DONE: Final = ".upkeep"
_NAMING: Final = ("index", "failures")


@dataclass(frozen=True)
class Swept:
    """What went, or would go.

    :param logs: of builds, files
    :param locks: directories
    :param size: of the logs, bytes
    """

    logs: int = 0
    locks: int = 0
    size: int = 0


class Upkeep:
    """Of one cache. Making one touches nothing on disk.

    :param top: the cache's versioned directory
    """

    def __init__(self, top: Path, presence: Presence = HERE) -> None:
        self._top, self._presence = top, presence
        self._logs, self._locks, self._tmp = top / "logs", top / "locks", top / "tmp"

    def when_due(self) -> Swept:
        """Sweep, unless somebody did so within :data:`EVERY_SECONDS`."""
        if not self._is_due():
            return Swept()
        with contextlib.suppress(OSError):
            (self._locks / _DONE).touch()
        return self.sweep()

    def sweep(self, age: float = OLD_SECONDS, *, dry: bool = False) -> Swept:
        """Remove what is old. Never raises for what cannot be removed.

        :param age: seconds
        :param dry: only say what would go
        """
        before = self._now() - age
        sizes = list(self._sweep_logs(before, dry=dry))
        return Swept(len(sizes), self._sweep_locks(before, dry=dry), sum(sizes))

    def _is_due(self) -> bool:
        try:
            done = (self._locks / _DONE).stat().st_mtime
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return self._now() - done >= EVERY_SECONDS

    def _now(self) -> float:
        try:
            return file_system_time(self._tmp)
        except OSError:  # nothing can be written: then nothing goes, either
            return time.time()

    def _sweep_logs(self, before: float, *, dry: bool) -> Iterator[int]:
        for first in _folders(self._logs):
            for folder in _folders(first):
                yield from self._sweep_spec(folder, before, dry=dry)
                if not dry and _older(folder, before):
                    with contextlib.suppress(OSError):  # some are there still
                        folder.rmdir()

    def _sweep_spec(self, folder: Path, before: float, *, dry: bool) -> Iterator[int]:
        """The sizes of those logs of one spec that went."""
        old = [path for path in _files(folder) if _older(path, before)]
        told = self._told_of(folder.name) if old else b""
        for path in old:
            if told is None or path.name.encode() in told:
                continue
            with contextlib.suppress(OSError):
                size = path.lstat().st_size
                if not dry:
                    path.unlink()
                yield size

    def _told_of(self, spec: str) -> bytes | None:
        """All that is written of a spec now; None where that cannot be read."""
        folders = (folder for kind in _NAMING for folder in _folders(self._top / kind))
        paths = (folder / spec[:2] / f"{spec}.json" for folder in folders)
        try:
            return b"\n".join(path.read_bytes() for path in paths if path.exists())
        except OSError:
            return None

    def _sweep_locks(self, before: float, *, dry: bool) -> int:
        return sum(
            self._goes(folder, dry=dry)
            for folder in _folders(self._locks)
            if _older(folder, before)
        )

    def _goes(self, lock: Path, *, dry: bool) -> bool:
        if not dry:
            aside = self._tmp / owned_name("removed")
            return locks.remove(lock, aside, self._presence)
        try:
            return locks.is_free(lock, self._presence)
        except OSError:
            return False


def _folders(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _listed(folder) if e.is_dir(follow_symlinks=False)]


def _files(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _listed(folder) if e.is_file(follow_symlinks=False)]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _older(path: Path, than: float) -> bool:
    try:
        return path.lstat().st_mtime <= than
    except OSError:
        return False
