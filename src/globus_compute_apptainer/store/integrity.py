"""Whether an image is what it was when it was published, and what to do if not.

Runs in the endpoint process and in ``gc-apptainer``. Every look-up compares size and
first bytes; the whole is read when somebody asks for it, or when a container that
should have started did not.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.index import (
    BYTECODE,
    MANIFEST,
    StoredImage,
    is_sif,
    state_of,
)
from globus_compute_apptainer.store.manifest import Manifest

if TYPE_CHECKING:
    import threading
    from pathlib import Path

BYTECODE_DIGEST: Final = "bytecode.sha256"

KEPT: Final = 3
"""Damaged images that stay for a look; the oldest go first."""


@dataclass(frozen=True)
class Health:
    """What is wrong with an image; two empty texts if nothing is.

    :param image: with the file or its manifest; the image has to be made anew
    :param bytecode: with the layer of compiled Python beside it, which can be removed
    """

    image: str = ""
    bytecode: str = ""

    @property
    def good(self) -> bool:
        return not self.image and not self.bytecode


def examine(image: StoredImage, cancel: threading.Event | None = None) -> Health:
    """Read an image and what is beside it.

    :param cancel: ends it once set
    :raises StoreError: it was ended (``build-cancelled``)
    """
    return Health(_image(image, cancel), _bytecode(image.folder, cancel))


def quarantine(image: StoredImage, folder: Path) -> bool:
    """Move an image there, unless another one has taken its place.

    :param folder: on the same file system; made if it is not there
    :raises OSError: it cannot be moved
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = image.folder
    aside = folder / f"{place.name}-{secrets.token_hex(4)}"
    try:
        place.rename(aside)
    except FileNotFoundError:
        return False
    if _state(aside / image.path.name) != image.state:
        try:
            aside.rename(place)
        except OSError:  # a third one is there
            shutil.rmtree(aside, ignore_errors=True)
        return False
    _keep_few(folder)
    return True


def drop_bytecode(image: StoredImage) -> None:
    """Remove a damaged layer of compiled Python; the image works without.

    :raises OSError: it cannot be removed
    """
    for name in (BYTECODE, BYTECODE_DIGEST):
        image.path.with_name(name).unlink(missing_ok=True)


def _image(image: StoredImage, cancel: threading.Event | None) -> str:
    try:
        size = image.path.stat().st_size
        if size != image.manifest.size:
            return f"it has {size} bytes instead of {image.manifest.size}"
        if not is_sif(image.path):
            return "it does not begin as a SIF does"
        found = files.name(image.path, image.manifest.piece_sizes, cancel)
        if f"sha256:{found}" != image.manifest.image_digest:
            return "its content is not what was published"
        told = image.path.with_name(MANIFEST).read_text(encoding="utf-8")
        beside = Manifest.from_json(told)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, UnicodeError) as error:
        return f"it cannot be read: {error}"
    except StoreError as error:
        if error.code == "build-cancelled":
            raise
        return f"its manifest is damaged: {error.message}"
    same = (beside.image_digest, beside.size) == (image.manifest.image_digest, size)
    return "" if same else "its manifest is of another image"


def _bytecode(folder: Path, cancel: threading.Event | None) -> str:
    try:
        if files.sha256(folder / BYTECODE, cancel) == _told(folder):
            return ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be read: {error}"
    return "its content is not what was compiled"


def _told(folder: Path) -> str:
    try:
        return (folder / BYTECODE_DIGEST).read_text(encoding="ascii")
    except (OSError, UnicodeError):
        return ""


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        return state_of(path)
    except OSError:
        return None


def _keep_few(folder: Path) -> None:
    with contextlib.suppress(OSError):
        found = sorted(folder.iterdir(), key=lambda path: path.lstat().st_mtime)
        for path in found[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
