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
        locks/cd34….lock          held while that spec's image is made
        logs/cd/cd34…/            one file per build
        tmp/                      what is being written; renamed when whole

A directory of another version beside it is left alone.

Guarantees:

- *Whole or absent.* An image is synced, read for its digest and only then renamed to
  its place; the index entry follows. A crash at any point leaves the old state, and
  litter in ``tmp`` that the next :meth:`Store.prepare` on this machine removes.
- *Nothing damaged is handed out knowingly.* An image whose size is wrong counts as
  absent, and publishing replaces it. Flipped bits inside are not noticed.
- Publishing the same image twice, also at once from several processes, gives one
  image and two successes.

Non-guarantees: an image may be removed while somebody runs it (the kernel keeps an
open file until its end); the lock is advisory, and holds between hosts only where
the file system has working ``flock``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import of_the_dead, owned_name
from globus_compute_apptainer.store import files, locks
from globus_compute_apptainer.store.manifest import Manifest, platform_name

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

IMAGE: Final = "image.sif"
MANIFEST: Final = "manifest.json"
BYTECODE: Final = "bytecode.sqfs"
VERSION: Final = "v2"
MIN_FREE_BYTES: Final = 64 * 1024**2
"""Below this :meth:`Store.prepare` reports a full disk before anything is built."""

LITTER_SECONDS: Final = 86400.0

_TAG: Final = """\
Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache of container images, made by globus-compute-apptainer.
# See https://bford.info/cachedir/
"""
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")
_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class StoredImage:
    """An image in the cache.

    :param path: of the image file; read-only for everyone who uses it
    """

    path: Path
    manifest: Manifest

    @property
    def bytecode(self) -> Path | None:
        """The layer of compiled Python beside it, if it is there by now."""
        path = self.path.with_name(BYTECODE)
        return path if path.exists() else None


class Store:
    """The cache under ``root``. Making one touches nothing on disk.

    Every method may raise :class:`~.errors.StoreError`: ``cache-unusable``,
    ``disk-full``. Safe to use from several threads and processes.
    """

    def __init__(self, root: Path, platform: str | None = None) -> None:
        self._root = root
        self._top = top = root / VERSION
        self._images, self._locks = top / "images/sha256", top / "locks"
        self._logs, self._tmp = top / "logs", top / "tmp"
        name = (platform or platform_name()).replace("/", "-")
        self._index = top / "index" / name
        # What was read of an index entry, and of which state of that file.
        self._known: dict[str, tuple[tuple[int, int, int], StoredImage]] = {}

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
            for folder in (self._images, self._index, self._locks, self._logs):
                folder.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(exist_ok=True)
            tag = self._root / "CACHEDIR.TAG"
            if not tag.exists():
                files.replace_durably(tag, _TAG, self._tmp)
            probe = self._tmp / owned_name("probe")
            probe.touch()
            probe.unlink()
            room = os.statvfs(self._tmp)
        if room.f_bavail * room.f_frsize < MIN_FREE_BYTES:
            raise StoreError(
                "there is no room left for images",
                hint="free some room, or move `cache_dir` to a larger file system",
                code="disk-full",
                path=str(self._root),
            )
        self._sweep()

    def lookup(self, spec_digest: str) -> StoredImage | None:
        """The image of a spec, if it is here whole; two ``stat`` calls when known.

        An entry that cannot be read as a manifest counts as absent.

        :raises StoreError: the cache is there but cannot be read
        """
        entry = self._entry(spec_digest)
        try:
            state = _state(entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise files.store_error(error, entry) from error
        known = self._known.get(spec_digest)
        if known is not None and known[0] == state:
            return known[1] if _has_size(known[1]) else None
        found = self._read(entry)
        if found is None or not _has_size(found):
            return None
        self._known[spec_digest] = (state, found)
        return found

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
            shutil.rmtree(work, ignore_errors=True)

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
        :param manifest: ``image_digest`` and ``size`` are filled in here
        :param sealed: what :func:`.files.seal` said of the file, if it was asked
        :param cancel: ends copying and reading once set
        :raises StoreError: it cannot be written, or was ended (``build-cancelled``);
            nothing is left then
        """
        if sif.parent.parent != self._tmp:
            with self.workspace() as work, files.translated(self._root):
                sealed = files.Sealed(*files.copy_durably(sif, work / IMAGE, cancel))
                return self._take(work, manifest, sealed)
        with files.translated(self._root):
            return self._take(sif.parent, manifest, sealed or files.seal(sif, cancel))

    def _take(self, work: Path, manifest: Manifest, image: files.Sealed) -> StoredImage:
        entry = self._entry(manifest.spec_digest)
        entry.parent.mkdir(parents=True, exist_ok=True)
        previous = self._read(entry)
        manifest = dataclasses.replace(
            manifest, image_digest=f"sha256:{image.sha256}", size=image.size
        )
        files.write_durably(work / MANIFEST, manifest.to_json())
        files.sync_folder(work)
        path = self._put(work, image.sha256, image.size)
        files.replace_durably(entry, manifest.to_json(), self._tmp)
        if previous is not None and not _has_size(previous):
            self._discard(previous.path.parent)
        stored = StoredImage(path, manifest)
        self._known[manifest.spec_digest] = (_state(entry), stored)
        return stored

    def attach(self, image: StoredImage, bytecode: Path) -> None:
        """Put a layer of compiled Python beside an image, whole; the first one stays.

        :param bytecode: a file in a :meth:`workspace`
        :raises StoreError: it cannot be written
        """
        place = image.path.with_name(BYTECODE)
        with files.translated(self._root):
            files.sync_file(bytecode)
            if not place.exists():
                bytecode.rename(place)
                files.sync_folder(place.parent)

    def lock(
        self, spec_digest: str, *, cancel: threading.Event, timeout: float = math.inf
    ) -> AbstractContextManager[None]:
        """Hold the right to make one spec's image; see :func:`.locks.hold`."""
        path = self._locks / f"{_hex(spec_digest)}.lock"
        return locks.hold(path, cancel=cancel, timeout=timeout)

    def images(self) -> Iterator[StoredImage]:
        """Every image that is whole, by spec digest, each as of when it is reached."""
        with files.translated(self._index):
            entries = sorted(self._index.glob("*/*.json"))
        for entry in entries:
            found = self.lookup(f"sha256:{entry.stem}")
            if found is not None:
                yield found

    def log_path(self, spec_digest: str) -> Path:
        """A fresh file name for the log of one build; its directory is made."""
        name = _hex(spec_digest)
        folder = self._logs / name[:2] / name
        with files.translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return folder / f"{stamp}-{secrets.token_hex(4)}.log"

    def remove(self, spec_digest: str) -> bool:
        """Forget a spec's image, and delete the file unless another spec has it.

        :returns: whether there was an entry
        """
        entry = self._entry(spec_digest)
        self._known.pop(spec_digest, None)
        with files.translated(entry):
            found = self._read(entry) if entry.exists() else None
            try:
                entry.unlink()
            except FileNotFoundError:
                return False
            if found is not None and not self._is_used(found.path):
                self._discard(found.path.parent)
        return True

    def _put(self, work: Path, digest: str, size: int) -> Path:
        """Rename ``work`` to the image's place, unless a whole one is there."""
        final = self._images / digest[:2] / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            if _renamed(work, final) or _is_whole(final / IMAGE, size):
                return final / IMAGE
            self._discard(final)
        raise OSError(errno.EBUSY, "an image's place cannot be taken", str(final))

    def _discard(self, folder: Path) -> None:
        """Take a directory out of sight at once, then delete it."""
        aside = self._tmp / owned_name("removed")
        self._tmp.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _is_used(self, image: Path) -> bool:
        entries = self._index.parent.glob("*/*/*.json")
        return any(f and f.path == image for f in map(self._read, entries))

    def _read(self, entry: Path) -> StoredImage | None:
        try:
            text = entry.read_text(encoding="utf-8", errors="replace")
            manifest = Manifest.from_json(text)
            name = _hex(manifest.image_digest)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise files.store_error(error, entry) from error
        except StoreError:
            return None
        return StoredImage(self._images / name[:2] / name / IMAGE, manifest)

    def _entry(self, spec_digest: str) -> Path:
        name = _hex(spec_digest)
        return self._index / name[:2] / f"{name}.json"

    def _sweep(self) -> None:
        """Remove what dead writers of this machine left behind, and, since of other
        machines nothing can be known, whatever is more than a day old."""
        for path in of_the_dead(self._tmp):
            _delete(path)
        oldest = time.time() - LITTER_SECONDS
        with contextlib.suppress(OSError):
            for path in self._tmp.iterdir():
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime <= oldest:
                        _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _hex(digest: str) -> str:
    found = _DIGEST.match(digest)
    if found is None:
        raise StoreError(f"not a digest: {digest!r:.80}", code="digest-invalid")
    return found[1]


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _has_size(image: StoredImage) -> bool:
    try:
        return image.path.stat().st_size == image.manifest.size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise files.store_error(error, image.path) from error


def _renamed(work: Path, final: Path) -> bool:
    """False where ``final`` is there already."""
    try:
        work.rename(final)
    except OSError:
        if not final.exists():
            raise
        return False
    files.sync_folder(final.parent)
    return True


def _is_whole(path: Path, size: int) -> bool:
    """Size and content match; ``path`` lies in a directory named by its digest."""
    try:
        return path.stat().st_size == size and files.sha256(path) == path.parent.name
    except OSError:
        return False
