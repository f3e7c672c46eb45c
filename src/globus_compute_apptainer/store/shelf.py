"""Things that builds keep for later builds: directories by key, whole or absent.

Runs in the endpoint process and in ``gc-apptainer``. Base images and layers are kept
here, below the cache::

    v2/SHELF/sha256/ab/ab12…/     the files that were put, read-only from then on
    v2/locks/SHELF-ab12…/         held while they are made

Guarantees: as of :mod:`.cache`; a directory appears by one rename, with all its
files on disk, and putting the same key twice keeps the first.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store import files, locks
from globus_compute_apptainer.store.leases import Leases
from globus_compute_apptainer.store.presence import HERE, Presence
from globus_compute_apptainer.store.room import lease_name

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

_KEY: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")


class Shelf:
    """Directories by key, of one kind. Making one touches nothing on disk.

    :param top: the cache's versioned directory
    :param kind: ``bases`` or ``layers``
    :param leases: keep what running builds of this process use from being removed
    """

    def __init__(
        self,
        top: Path,
        kind: str,
        leases: Leases | None = None,
        presence: Presence = HERE,
    ) -> None:
        self._top, self._kind, self._presence = top, kind, presence
        self._places = top / kind / "sha256"
        self._tmp = top / "tmp"
        self._leases = leases or Leases(top, presence)

    def find(self, key: str) -> Path | None:
        """The directory of ``key``, if it is there; it stays for the running builds."""
        place = self._place(key)
        if not place.is_dir():
            return None
        self._leases.use(lease_name(self._kind, place.name))
        if not place.is_dir():  # removed meanwhile
            return None
        with contextlib.suppress(OSError):
            os.utime(place)
        return place

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private empty directory on the cache's own file system, removed at the
        end unless :meth:`keep` took it."""
        with files.translated(self._top):
            self._tmp.mkdir(parents=True, exist_ok=True)
            folder = self._tmp / owned_name(self._kind)
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, key: str, workspace: Path) -> Path:
        """Rename ``workspace`` to the place of ``key``; the first one there stays.

        :raises StoreError: it cannot be written
        """
        place = self._place(key)
        self._leases.use(lease_name(self._kind, place.name))
        with files.translated(self._top):
            place.parent.mkdir(parents=True, exist_ok=True)
            for path in workspace.iterdir():
                files.sync_file(path)
            files.sync_folder(workspace)
            try:
                workspace.rename(place)
            except OSError:
                if not place.is_dir():
                    raise
            files.sync_folder(place.parent)
        return place

    def lock(
        self, key: str, *, cancel: threading.Event, timeout: float = math.inf
    ) -> AbstractContextManager[locks.Held]:
        """Hold the right to make one; see :func:`.locks.hold`."""
        path = self._top / "locks" / f"{self._kind}-{_hex(key)}"
        return locks.hold(path, cancel=cancel, timeout=timeout, presence=self._presence)

    def remove(self, key: str) -> bool:
        """Take it out of sight at once, then delete it; whether it was there."""
        aside = self._tmp / owned_name("removed")
        with files.translated(self._top):
            self._tmp.mkdir(parents=True, exist_ok=True)
            try:
                self._place(key).rename(aside)
            except FileNotFoundError:
                return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _place(self, key: str) -> Path:
        name = _hex(key)
        return self._places / name[:2] / name


def _hex(key: str) -> str:
    found = _KEY.match(key)
    if found is None:
        raise StoreError(f"not a digest: {key!r:.80}", code="digest-invalid")
    return found[1]
