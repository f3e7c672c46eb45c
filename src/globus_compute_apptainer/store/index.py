"""Which image a spec has: entries by spec digest, read as seldom as can be.

Runs in the endpoint process and in ``gc-apptainer``; reads only. An entry is the
manifest of the image. What is not exactly that counts as absent, with a note in the
log: a damaged or foreign file in a cache is no reason to fail, and the next build of
the spec replaces it.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

IMAGE: Final = "image.sif"
MANIFEST: Final = "manifest.json"
BYTECODE: Final = "bytecode.sqfs"

SIF_MAGIC: Final = b"SIF_MAGIC\0"
SIF_MAGIC_AT: Final = 32
"""Every SIF begins with a line that runs it, and then with this."""

REMEMBERED: Final = 512
"""Manifests that one process keeps in memory."""

State = tuple[int, int, int]
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")


@dataclass(frozen=True)
class StoredImage:
    """An image in the cache.

    :param path: of the image file; read-only for everyone who uses it
    :param state: of that file (inode, time, size) when it was looked at: tells it
        from another one that takes its place
    """

    path: Path
    manifest: Manifest
    state: State = field(default=(0, 0, 0), compare=False)

    @functools.cached_property
    def folder(self) -> Path:
        """That holds all that belongs to it."""
        return self.path.parent

    @functools.cached_property
    def name(self) -> str:
        """Of that folder."""
        return self.folder.name

    @property
    def bytecode(self) -> Path | None:
        """The layer of compiled Python beside it, if it is there by now."""
        path = self.path.with_name(BYTECODE)
        return path if path.exists() else None


class Index:
    """The entries for one platform.

    :param folder: of the entries
    :param images: where the images are, by their own digest
    """

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self._images = folder, images
        # What was read of an entry, and of which state of that file.
        self._known: OrderedDict[str, tuple[State, StoredImage]] = OrderedDict()
        self._lock = threading.Lock()

    def lookup(self, spec_digest: str) -> StoredImage | None:
        """The image of a spec, if it is here whole; two ``stat`` calls when known.

        :raises StoreError: the cache is there but cannot be read
        """
        entry = self.entry(spec_digest)
        try:
            state = state_of(entry)
        except (FileNotFoundError, NotADirectoryError):
            self.forget(spec_digest)
            return None
        except OSError as error:
            raise files.store_error(error, entry) from error
        known = self._known.get(spec_digest)
        found = known[1] if known and known[0] == state else self.read(entry)
        found = None if found is None else _whole(found)
        if found is None:
            self.forget(spec_digest)
        else:
            self._remember(spec_digest, state, found)
        return found

    def all(self) -> Iterator[StoredImage]:
        """Every image that is whole, by spec digest, each as of when it is reached."""
        with files.translated(self.folder):
            entries = sorted(self.folder.glob("*/*.json"))
        for entry in entries:
            if _DIGEST.match(f"sha256:{entry.stem}"):
                found = self.read(entry)
                if found is not None and (whole := _whole(found)) is not None:
                    yield whole

    def entry(self, spec_digest: str) -> Path:
        name = hexadecimal(spec_digest)
        return self.folder / name[:2] / f"{name}.json"

    def forget(self, spec_digest: str) -> None:
        """Read it anew the next time."""
        with self._lock:
            self._known.pop(spec_digest, None)

    def _remember(self, spec_digest: str, state: State, found: StoredImage) -> None:
        with self._lock:
            self._known[spec_digest] = (state, found)
            self._known.move_to_end(spec_digest)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def read(self, entry: Path) -> StoredImage | None:
        """What an entry says, whether the image is there or not."""
        manifest = read_manifest(entry)
        if manifest is None:
            return None
        if hexadecimal(manifest.spec_digest) != entry.stem:
            log.warning("%s counts as absent: it is of another spec", entry)
            return None
        name = hexadecimal(manifest.image_digest)
        return StoredImage(self._images / name[:2] / name / IMAGE, manifest)


def read_manifest(path: Path) -> Manifest | None:
    """A manifest that is one; anything else counts as absent.

    :raises StoreError: it is there but cannot be read
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        manifest = Manifest.from_json(text)
        hexadecimal(manifest.image_digest)
        hexadecimal(manifest.spec_digest)
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise files.store_error(error, path) from error
    except StoreError as error:
        log.warning("%s counts as absent: %s", path, error.message)
        return None


def hexadecimal(digest: str) -> str:
    """The digits of ``sha256:…``.

    :raises StoreError: it is no digest (``digest-invalid``)
    """
    found = _DIGEST.match(digest)
    if found is None:
        raise StoreError(f"not a digest: {digest!r:.80}", code="digest-invalid")
    return found[1]


def state_of(path: Path) -> State:
    """What changes whenever a file is replaced or written to.

    :raises OSError: it is not there
    """
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def is_sif(path: Path) -> bool:
    """Whether a file begins as every SIF does.

    :raises OSError: it cannot be read
    """
    with path.open("rb") as file:
        file.seek(SIF_MAGIC_AT)
        return file.read(len(SIF_MAGIC)) == SIF_MAGIC


def _whole(image: StoredImage) -> StoredImage | None:
    """The image, if its file has the right size and, where it is not the one that was
    looked at before, the right beginning."""
    try:
        state = state_of(image.path)
        if state[2] != image.manifest.size:
            return None
        if state == image.state:
            return image
        if not is_sif(image.path):
            log.warning("%s counts as absent: it is no SIF", image.path)
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise files.store_error(error, image.path) from error
    return StoredImage(image.path, image.manifest, state)


def has_size(image: StoredImage) -> bool:
    """Whether the image's file is there, with all its bytes."""
    try:
        return image.path.stat().st_size == image.manifest.size
    except (FileNotFoundError, NotADirectoryError):
        return False
