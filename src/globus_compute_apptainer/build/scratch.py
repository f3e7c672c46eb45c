"""Where a build works: the fastest place with room, private, and swept.

Runs in the endpoint process. A build that is killed with SIGKILL leaves its
directory behind; the next build on the same machine removes it, see :mod:`..owners`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.memory import available_memory
from globus_compute_apptainer.errors import BuildError, ConfigError, HostError
from globus_compute_apptainer.owners import of_the_dead, owned_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from globus_compute_apptainer.config import BuildConfig

log = logging.getLogger(__name__)

NEED_BYTES: Final = 4 * 1024**3
"""Room asked for by default: unpacked base and packages, and the packed image."""

MEMORY_SHARE: Final = 2
"""A tmpfs is used only if this many times the need is free, as it is memory."""

# What this process's running builds may still write, by the place they work in.
_PROMISED: Counter[Path] = Counter()
_CHOOSING: Final = threading.Lock()

_MEMORY_PLACE: Final = Path("/dev/shm")  # noqa: S108 - one private directory in it
_DISK_PLACES: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108
PREFIX: Final = "gc-apptainer-build"

# Files of a killed build may belong to sub-ids, which only a namespace can remove.
_REMOVE_DEFINITION: Final = """\
Bootstrap: scratch

%setup
    rm -rf -- "$GC_APPTAINER_REMOVE"
"""


@dataclass(frozen=True)
class Place:
    """A directory that builds could work in.

    :param free: bytes that this user may still write, less those promised to builds
    :param memory: whether what is written there takes memory
    :param usable: writable, and programs may be run from it
    """

    path: Path
    free: int
    memory: bool = False
    usable: bool = True


def choose_place(
    places: Sequence[Place], need: int, memory_available: int
) -> Place | None:
    """The first usable place with room, else the usable disk with most; pure."""
    usable = [place for place in places if place.usable]
    for place in usable:
        room = min(place.free, memory_available) if place.memory else place.free
        if room >= need * (MEMORY_SHARE if place.memory else 1):
            return place
    disks = [place for place in usable if not place.memory]
    return max(disks, key=lambda place: place.free, default=None)


def choose_scratch(
    config: BuildConfig, *, need: int = NEED_BYTES, fallbacks: Sequence[Path] = ()
) -> Path:
    """Directory to make private directories in: ``build.tmp_dir``, or the best.

    Order: memory, ``TMPDIR``, ``/tmp``, ``/var/tmp``, then ``fallbacks``. Where
    none has room for ``need`` bytes, the disk with the most; the build then ends
    with ``disk-full`` if that is not enough.

    :raises ConfigError: the configured directory cannot be used
    :raises BuildError: no directory can be written to (``disk-full``)
    """
    if config.tmp_dir is not None:
        if not _look(config.tmp_dir).usable:
            raise ConfigError(
                f"builds cannot work in {config.tmp_dir}",
                hint="it must exist, be writable and not be mounted noexec",
                key="build.tmp_dir",
            )
        return config.tmp_dir
    disks = dict.fromkeys([Path(tempfile.gettempdir()), *_DISK_PLACES, *fallbacks])
    places = [_look(_MEMORY_PLACE, memory=True), *map(_look, disks)]
    memory = available_memory() - _PROMISED[_MEMORY_PLACE]
    chosen = choose_place(places, need, memory)
    if chosen is None:
        raise BuildError(
            "there is no directory on this machine that a build could work in",
            hint="name one as `build.tmp_dir` in the `containers:` block",
            code="disk-full",
            stage="resolve",
        )
    return chosen.path


@contextlib.contextmanager
def private_scratch(
    config: BuildConfig, *, need: int = NEED_BYTES, fallbacks: Sequence[Path] = ()
) -> Iterator[Path]:
    """A private empty directory for one build, removed at the end.

    Also removes what dead builds of this user left in the same place. Failing to
    remove is logged, never raised.

    :raises ConfigError: see :func:`choose_scratch`
    :raises BuildError: see :func:`choose_scratch`
    """
    with (
        _promised_place(config, need, fallbacks) as parent,
        private_folder(parent) as path,
    ):
        yield path


@contextlib.contextmanager
def private_folder(
    parent: Path, remove: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """A private empty directory in ``parent``, removed at the end.

    Also removes what dead builds of this user left there. Failing to remove is
    logged, never raised.

    :param remove: sees to it that :func:`remove_tree` is done to it; by default at once
    :raises OSError: it cannot be made
    """
    sweep(parent)
    path = parent / owned_name(PREFIX)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        (remove or remove_tree)(path)


@contextlib.contextmanager
def _promised_place(
    config: BuildConfig, need: int, fallbacks: Sequence[Path]
) -> Iterator[Path]:
    """Builds that start at once must not all count on the same room."""
    with _CHOOSING:
        parent = choose_scratch(config, need=need, fallbacks=fallbacks)
        _PROMISED[parent] += need
    try:
        yield parent
    finally:
        with _CHOOSING:
            _PROMISED[parent] -= need


def sweep(parent: Path) -> list[Path]:
    """Remove the directories of dead builds of this user; returns them."""
    removed = []
    for path in of_the_dead(parent, PREFIX):
        log.info("removing what a dead build left: %s", path)
        remove_tree(path)
        removed.append(path)
    return removed


def remove_tree(path: Path) -> bool:
    """Remove a directory with all in it, also what belongs to this user's sub-ids.

    :returns: whether it is gone; if not, the reason is in the log
    """
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)  # noqa: PTH101 - os.walk gives text
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _remove_in_namespace(path)
    if path.exists():
        log.warning("cannot remove %s", path)
        return False
    return True


def _remove_in_namespace(path: Path) -> None:
    """Let a build of nothing remove the directory as its root."""
    try:
        apptainer = Apptainer.find()
        with tempfile.TemporaryDirectory(prefix="gc-apptainer-remove-") as folder:
            definition = Path(folder, "remove.def")
            definition.write_text(_REMOVE_DEFINITION, encoding="utf-8")
            argv = apptainer.build_argv(
                definition, Path(folder, "nothing"), options=["--sandbox"]
            )
            extra = {"APPTAINER_TMPDIR": folder, "GC_APPTAINER_REMOVE": str(path)}
            env = {**apptainer.environment(), **extra}
            run(argv, env=env, timeout=600.0, on_line=log.debug)
    except (HostError, OSError) as error:
        log.warning("cannot remove %s: %s", path, error)


def _look(path: Path, *, memory: bool = False) -> Place:
    try:
        state = os.statvfs(path)
    except OSError:
        return Place(path, 0, memory, usable=False)
    usable = os.access(path, os.W_OK | os.X_OK) and not state.f_flag & os.ST_NOEXEC
    free = state.f_bavail * state.f_frsize - _PROMISED[path]
    return Place(path, free, memory, usable)
