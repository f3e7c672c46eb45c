"""Copies of images on a node's own disk, for shared file systems to be read once.

Runs in worker processes. The folder (``run.stage_to``) belongs to one user and is used
by all worker pools of the node::

    gc-images-1000/
        <sha256>.sif     a copy, whole and verified; its time is that of its last use
        <sha256>.sqfs    the same, of an image's layer of compiled Python
        <sha256>.lock    locked by those who use the copy, and by one who changes it
        part-<owner>     a copy that is being made
        lock             held while room is made

Guaranteed: a copy is there whole, with the bytes of the image's digest, or not at all;
of several processes that need it at once one copies; what is in use is not removed.
Not guaranteed: that there is a copy. Whatever stands in its way, the image is used from
where it is, and the worker's log says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer import owners
from globus_compute_apptainer.pieces import Hasher
from globus_compute_apptainer.worker import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from globus_compute_apptainer.worker.order import ContainerOrder

log = logging.getLogger(__name__)

PART: Final = "part"
IMAGE: Final = ".sif"
LAYER: Final = ".sqfs"
CHUNK_BYTES: Final = 4 * 1024**2
LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Wanted:
    """What is to be copied.

    :param size: bytes that it must have
    :param digest: ``sha256:…`` that it must have
    :param pieces: bytes of each piece that the digest is made of, see :mod:`..pieces`
    """

    size: int
    digest: str
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Copy:
    """A file on the node, kept there for as long as ``lock`` is open.

    :param lock: a descriptor, the caller's to close
    :param made: whether this call made the copy
    """

    path: Path
    lock: int
    made: bool


def staged(order: ContainerOrder) -> tuple[ContainerOrder, tuple[int, ...]]:
    """The order with its files on this node's disk, and what keeps them there.

    :returns: the order as it was, where it asks for no copies or none can be made,
        and descriptors that the caller closes
    """
    if order.stage_to is None:
        return order, ()
    here, held = order, []
    wanted = Wanted(order.size, order.image_digest, order.pieces)
    if image := _copied(order, order.image, lambda _: wanted):
        here = dataclasses.replace(here, image=str(image.path))
        held.append(image.lock)
    if order.bytecode and (layer := _copied(order, order.bytecode, _of_layer)):
        here = dataclasses.replace(here, bytecode=str(layer.path))
        held.append(layer.lock)
    return here, tuple(held)


def _copied(
    order: ContainerOrder, file: str, wanted: Callable[[Path], Wanted]
) -> Copy | None:
    """A copy of one of an order's files; None if there can be none."""
    source = Path(file)
    try:
        base = Path(os.path.expandvars(order.stage_to or ""))
        folder = Folder(base, order.stage_size)
        copy = folder.copy(source, wanted(source), order.start_timeout)
    except (OSError, ValueError) as error:
        log.warning("%s is used from where it is: %s", source, error)
        return None
    if copy.made:
        log.info("%s was copied to %s", source, copy.path)
    return copy


def _of_layer(path: Path) -> Wanted:
    """As the store wrote it down beside the layer of an image's bytecode."""
    digest = path.with_suffix(".sha256").read_text(encoding="ascii")
    return Wanted(path.stat().st_size, f"sha256:{digest}")


class Folder:
    """The copies of one user on this node.

    :param base: where the folder is, or is made
    :param most: bytes that all copies together may take
    :raises OSError: it cannot be used, or others may write in it
    :raises ValueError: ``base`` is not an absolute path, once variables are put in
    """

    def __init__(self, base: Path, most: int) -> None:
        if not base.is_absolute():
            raise ValueError(f"`stage_to` is not an absolute path here: {base}")
        self._path, self._most = base / f"gc-images-{os.geteuid()}", most
        base.mkdir(parents=True, exist_ok=True)
        place.make(self._path)

    def copy(self, source: Path, wanted: Wanted, seconds: float) -> Copy:
        """A copy of ``source``, made if there is none.

        :param seconds: how long to wait for others that make it
        :raises OSError: no room, no permission, or others took too long
        :raises ValueError: ``source`` is not what is wanted
        """
        name, size = wanted.digest.removeprefix("sha256:"), wanted.size
        kind = LAYER if source.suffix == LAYER else IMAGE
        target = self._path / f"{name}{kind}"
        lock = os.open(self._path / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        made = False
        try:
            deadline = time.monotonic() + seconds
            while not (_acquired(lock, fcntl.LOCK_SH) and _has_size(target, size)):
                fcntl.flock(lock, fcntl.LOCK_UN)  # or two would wait for each other
                if not _acquired(lock, fcntl.LOCK_EX):
                    _wait(deadline)
                elif not _has_size(target, size):
                    self._make(source, target, wanted)
                    made = True
            os.utime(target)
        except BaseException:
            os.close(lock)
            raise
        return Copy(target, lock, made)

    def _make(self, source: Path, target: Path, wanted: Wanted) -> None:
        part = self._path / owners.owned_name(PART)
        try:
            with part.open("xb") as output:
                with self._alone():
                    self._make_room(wanted.size)
                    os.posix_fallocate(output.fileno(), 0, wanted.size)
                _pour(source, output.fileno(), wanted)
                os.fsync(output.fileno())
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used of those that are not in use."""
        for left in owners.of_the_dead(self._path, PART):
            left.unlink(missing_ok=True)
        copies = [
            path for kind in (IMAGE, LAYER) for path in self._path.glob(f"*{kind}")
        ]
        files = [*copies, *self._path.glob(f"{PART}-*")]
        taken = sum(_size(file) for file in files)
        if size > self._most:
            raise OSError(f"it is larger than `stage_size` ({self._most} bytes)")
        for copy in sorted(copies, key=_used):
            if taken + size <= self._most:
                return
            freed = _size(copy)
            if _remove_if_idle(copy):
                taken -= freed
                log.info("%s made room for another image", copy)
        if taken + size > self._most:
            raise OSError(f"`stage_size` ({self._most} bytes) is full of images in use")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("others have taken too long to copy it")
    time.sleep(LOOK_SECONDS)


def _acquired(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pour(source: Path, output: int, wanted: Wanted) -> None:
    found, copied = Hasher(wanted.pieces), 0
    with source.open("rb", buffering=0) as content:
        while chunk := content.read(CHUNK_BYTES):
            found.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(output, rest) :]
            copied += len(chunk)
    if copied != wanted.size or f"sha256:{found.name}" != wanted.digest:
        raise ValueError("it is not the image that was published")


def _remove_if_idle(copy: Path) -> bool:
    lock = os.open(copy.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        idle = _acquired(lock, fcntl.LOCK_EX)
        if idle:
            copy.unlink(missing_ok=True)
    finally:
        os.close(lock)
    return idle


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and _size(path) == size


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
