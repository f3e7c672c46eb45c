"""The image cache on disk.

Runs in the endpoint process and in ``gc-apptainer``; workers use images by path
only. Content addressed, in a versioned directory::

    ROOT/
      CACHEDIR.TAG
      v2/
        images/sha256/ab/ab12…/   image.sif, manifest.json (of its first spec),
                                  bytecode.sqfs once it is there
        index/linux-amd64/cd/cd34….json   spec digest → manifest of its image
        bases/, layers/           what images are made of, see :mod:`.shelf`
        tags/                     what names were last resolved to
        packages/                 caches of uv and rattler
        locks/cd34…/              who makes that spec's image, see :mod:`.locks`;
                                  and .upkeep, see :mod:`.upkeep`
        leases/                   who uses what, see :mod:`.leases`
        failures/                 builds that failed lately, see :mod:`.failures`
        quarantine/               damaged images
        logs/cd/cd34…/            one file per build
        tmp/                      what is being written; renamed when whole

A directory of another version beside it is left alone.

Guarantees:

- *Whole or absent.* An image is synced, read for its digest and only then renamed to
  its place; the index entry follows. A crash at any point leaves the old state, and
  litter in ``tmp`` that the next :meth:`Store.prepare` on this machine removes.
- *Nothing damaged is handed out knowingly.* An image whose size or beginning is wrong
  counts as absent, and publishing replaces it. Flipped bits inside are noticed by
  :meth:`Store.examine`.
- *Nothing in use is removed*, see :mod:`.leases` and :mod:`.room`.
- Publishing the same image twice, also at once from several processes, gives one
  image and two successes.

What is not guaranteed is in ``docs/explanation/promises.md``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner, of_the_dead, owned_name
from globus_compute_apptainer.store import files, integrity, locks, placing
from globus_compute_apptainer.store.index import (
    BYTECODE,
    IMAGE,
    MANIFEST,
    Index,
    StoredImage,
    has_size,
    hexadecimal,
    read_manifest,
    state_of,
)
from globus_compute_apptainer.store.leases import Lease, Leases
from globus_compute_apptainer.store.litter import (
    delete,
    delete_at_last,
    delete_left,
    leavings_of,
    old_litter,
)
from globus_compute_apptainer.store.manifest import Manifest, platform_name
from globus_compute_apptainer.store.presence import HERE, Presence
from globus_compute_apptainer.store.room import (
    IMAGES,
    TOUCH_SECONDS,
    Freed,
    Room,
    Thing,
    lease_name,
)
from globus_compute_apptainer.store.upkeep import Swept, Upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["BYTECODE", "IMAGE", "MANIFEST", "Store", "StoredImage"]

VERSION: Final = "v2"
MIN_FREE_BYTES: Final = 64 * 1024**2
"""Below this :meth:`Store.prepare` reports a full disk before anything is built."""

_TAG: Final = """\
Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache of container images, made by globus-compute-apptainer.
# See https://bford.info/cachedir/
"""
ENTRY: Final = "entry"
_MANY: Final = 10_000


class Store:
    """The cache under ``root``. Making one touches nothing on disk.

    Every method may raise :class:`~.errors.StoreError`: ``cache-unusable``,
    ``disk-full``. Safe to use from several threads and processes.
    """

    def __init__(
        self, root: Path, platform: str | None = None, presence: Presence = HERE
    ) -> None:
        self._root, self._presence = root, presence
        self._top = top = root / VERSION
        self._below = f"{top}/"
        self._images, self._locks = top / "images/sha256", top / "locks"
        self._logs, self._tmp = top / "logs", top / "tmp"
        self.platform = (platform or platform_name()).replace("/", "-")
        self._index = Index(top / "index" / self.platform, self._images)
        self.leases = Leases(top, presence)
        self._room = Room(top, self.leases)
        self._upkeep = Upkeep(top, presence)
        self._touched: dict[Path, float] = {}

    @property
    def root(self) -> Path:
        return self._root

    @property
    def top(self) -> Path:
        """The versioned directory, for what else is kept there."""
        return self._top

    def prepare(self) -> None:
        """Make the directories, and see that images can be written.

        :raises StoreError: the cache cannot be written to (``cache-unusable``), or
            has no room for any image (``disk-full``)
        """
        with files.translated(self._root):
            folders = (self._images, self._index.folder, self._locks, self._logs)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(exist_ok=True)
            tag = self._root / "CACHEDIR.TAG"
            if not tag.exists():
                files.replace_durably(tag, _TAG, self._tmp)
            probe = self._tmp / owned_name("probe")
            probe.touch()
            probe.unlink()
            for path in (*of_the_dead(self._tmp), *old_litter(self._tmp)):
                self._clear(path)
            delete_left(self._tmp)
            self.leases.in_use()  # removes those of the dead
            room = os.statvfs(self._tmp)
        if room.f_bavail * room.f_frsize < MIN_FREE_BYTES:
            raise StoreError(
                "there is no room left for images",
                hint="free some room, or move `cache_dir` to a larger file system",
                code="disk-full",
                path=str(self._root),
            )

    def lookup(self, spec_digest: str) -> StoredImage | None:
        """The image of a spec, if it is here whole; two ``stat`` calls when known.

        An entry that cannot be read as a manifest counts as absent.

        :raises StoreError: the cache is there but cannot be read
        """
        return self._index.lookup(spec_digest)

    def use(self, image: StoredImage) -> Lease | None:
        """Keep an image from being removed until the lease is let go.

        :param image: of another cache: then nothing is written, and nothing is kept
        :returns: None if it is not there any more. Where this process uses it already,
            nobody looks: it cannot have gone by any orderly way
        """
        if not str(image.path).startswith(self._below):
            return Lease.of_nothing()
        lease = self.leases.hold(lease_name(IMAGES, image.name))
        if lease.is_first and not has_size(image):
            lease.let_go()
            return None
        self._touch(image.folder)
        return lease

    def make_room(self, limit: int, *, dry: bool = False) -> Freed:
        """Remove what was not used for longest, until ``limit`` bytes are left; never
        what is in use, see :mod:`.room`.

        :param dry: only say what would go
        :raises StoreError: somebody else does this (``lock-timeout``), or it cannot
            be done
        """
        if dry:
            return self._room.make(limit, dry=True)
        never, place = threading.Event(), self._locks / "room"
        with locks.hold(place, cancel=never, timeout=0, presence=self._presence):
            return self._room.make(limit, gone=self._forget)

    def remove_old(self, *, dry: bool = False) -> Swept:
        """Remove old logs and locks, see :mod:`.upkeep`.

        :param dry: only say what would go
        """
        return self._upkeep.sweep(dry=dry)

    def keep_up(self) -> Swept:
        """The same, unless somebody has done so today."""
        return self._upkeep.when_due()

    def _forget(self, thing: Thing, aside: Path) -> None:
        """Remove the entry of the spec that an image was made for; entries of other
        specs lead nowhere from now on, which is the same."""
        if thing.kind != IMAGES:
            return
        told = read_manifest(aside / MANIFEST)
        if told is None:
            return
        lock = self.lock(told.spec_digest, cancel=threading.Event(), timeout=0)
        with contextlib.suppress(StoreError), lock:
            if self.lookup(told.spec_digest) is None:
                self._index.entry(told.spec_digest).unlink(missing_ok=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private empty directory for an image in the making; removed at the end
        unless :meth:`publish` took it."""
        with files.translated(self._root):
            self._tmp.mkdir(parents=True, exist_ok=True)
            work = self._tmp / owned_name("image")
            work.mkdir()
        try:
            yield work
        finally:
            delete_at_last(work)

    def publish(
        self,
        sif: Path,
        manifest: Manifest,
        *,
        sealed: files.Sealed | None = None,
        cancel: threading.Event | None = None,
    ) -> StoredImage:
        """Take a finished image into the cache.

        :param sif: in a :meth:`workspace` it is moved, elsewhere it is copied
        :param manifest: digest, size and pieces are filled in here
        :param sealed: what :func:`.files.seal` said of the file, if it was asked
        :param cancel: ends copying and reading once set
        :raises StoreError: it cannot be written, or was ended (``build-cancelled``);
            nothing is left then
        """
        if sif.parent.parent != self._tmp:
            with self.workspace() as work, files.translated(self._root):
                sealed = files.copy_durably(sif, work / IMAGE, cancel)
                return self._take(work, manifest, sealed)
        with files.translated(self._root):
            return self._take(sif.parent, manifest, sealed or files.seal(sif, cancel))

    def _take(self, work: Path, manifest: Manifest, image: files.Sealed) -> StoredImage:
        entry = self._index.entry(manifest.spec_digest)
        entry.parent.mkdir(parents=True, exist_ok=True)
        previous = self._index.read(entry)
        manifest = dataclasses.replace(
            manifest,
            image_digest=f"sha256:{image.sha256}",
            size=image.size,
            pieces=tuple((one.size, one.sha256) for one in image.pieces),
        )
        # Whoever makes room may be quick; when it is let go, a lease stays a while.
        self.leases.hold(lease_name(IMAGES, image.sha256)).let_go()
        files.write_durably(work / MANIFEST, manifest.to_json())
        files.sync_folder(work)
        # First, so that an image whose process dies right after is not left for nobody.
        entering = self._tmp / owned_name(ENTRY)
        try:
            files.write_durably(entering, manifest.to_json())
            place = self._images / image.sha256[:2] / image.sha256
            placing.put(work, place, image, self._tmp)
            path = place / IMAGE
            entering.replace(entry)
        except OSError:
            entering.unlink(missing_ok=True)
            raise
        files.sync_folder(entry.parent)
        if previous is not None and previous.path != path and not has_size(previous):
            placing.discard(previous.folder, self._tmp)
        return StoredImage(path, manifest, state_of(path))

    def attach(self, image: StoredImage, bytecode: Path) -> None:
        """Put a layer of compiled Python beside an image, whole; the first one stays.

        :param bytecode: a file in a :meth:`workspace`
        :raises StoreError: it cannot be written
        """
        place = image.path.with_name(BYTECODE)
        with files.translated(self._root):
            sealed = files.seal(bytecode)
            if not place.exists():
                told = place.with_name(integrity.BYTECODE_DIGEST)
                files.replace_durably(told, sealed.sha256, self._tmp)
                bytecode.rename(place)
                files.sync_folder(place.parent)

    def examine(
        self, image: StoredImage, cancel: threading.Event | None = None
    ) -> integrity.Health:
        """Read an image whole, and say what is wrong with it; see :mod:`.integrity`."""
        return integrity.examine(image, cancel)

    def quarantine(self, image: StoredImage) -> bool:
        """Take a damaged image out of its place, and keep it for a look.

        :returns: whether it was this one; False if another is in its place by now
        """
        with files.translated(self._root):
            return integrity.quarantine(image, self._top / "quarantine")

    def lock(
        self,
        spec_digest: str,
        *,
        cancel: threading.Event,
        timeout: float = math.inf,
        watch: Callable[[locks.News], None] = locks.ignore,
    ) -> AbstractContextManager[locks.Held]:
        """Hold the right to make one spec's image; see :func:`.locks.hold`.

        What a dead holder left half done is removed.
        """
        return locks.hold(
            self._locks / hexadecimal(spec_digest),
            cancel=cancel,
            timeout=timeout,
            presence=self._presence,
            watch=watch,
            clear=self._clear_all,
        )

    def slot(
        self, count: int, *, cancel: threading.Event
    ) -> AbstractContextManager[locks.Held]:
        """One of ``count`` places for builds of all who share the cache."""
        places = [self._locks / f"slot-{number}" for number in range(count)]
        return locks.hold_any(places, cancel=cancel, presence=self._presence)

    def _clear_all(self, dead: Owner) -> None:
        for path in leavings_of(self._tmp, dead):
            self._clear(path)

    def _clear(self, left: Path) -> None:
        """Remove what a dead process left in ``tmp``; or finish it, where its image is
        in its place and only the entry is missing."""
        if left.name.startswith(f"{ENTRY}-"):
            with contextlib.suppress(OSError, StoreError):
                self._enter(left)
        delete(left)

    def _enter(self, left: Path) -> None:
        told = read_manifest(left)
        if told is None or self.lookup(told.spec_digest) is not None:
            return
        name = hexadecimal(told.image_digest)
        image = StoredImage(self._images / name[:2] / name / IMAGE, told)
        if has_size(image):
            left.replace(self._index.entry(told.spec_digest))

    def images(self) -> Iterator[StoredImage]:
        """Every image that is whole, by spec digest, each as of when it is reached."""
        return self._index.all()

    def log_path(self, spec_digest: str) -> Path:
        """A fresh empty file for the log of one build."""
        name = hexadecimal(spec_digest)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._logs / name[:2] / name / f"{stamp}-{secrets.token_hex(4)}.log"
        with files.translated(path.parent):
            files.touch_below(path)
        return path

    def _touch(self, path: Path) -> None:
        """Write down that something is used, every now and then."""
        now = time.monotonic()
        if now - self._touched.get(path, -math.inf) < TOUCH_SECONDS:
            return
        if len(self._touched) > _MANY:
            self._touched.clear()
        self._touched[path] = now
        with contextlib.suppress(OSError):
            os.utime(path)
