"""apt's package lists, kept from one build on a base to the next.

Runs in the endpoint process. Every apt layer begins with ``apt-get update``. Given the
lists of the last time, apt asks the mirrors whether they are still the newest, and
fetches, checks and unpacks only what is not: the answer is the same, and a fourth of
the time. A file for each base, in the package cache::

    apt/SHA256.tar      lists/…  cache/srcpkgcache.bin

They are written by the base's own apt, as root of a build, so nothing here trusts what
it finds: plain files only, of so much and no more. Whoever may have had a say in what
ran there gets none of them, and leaves none (:func:`kept_lists`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from globus_compute_apptainer.build.layer import layer_key
from globus_compute_apptainer.owners import owned_name

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.layers import Below

MOST_BYTES: Final = 1024**3
"""Of one base's lists; more are not kept."""

MOST_BASES: Final = 16
"""Whose lists are kept; those that were used last."""

_FOLDERS: Final = {"lists": None, "cache": {"srcpkgcache.bin"}}
"""What is kept of each; all plain files where no names are given."""

_States = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Lists:
    """The lists of one base; only for speed, so that what fails is left out.

    :param file: a tar archive, replaced as a whole
    """

    file: Path

    def lay(self, apt: Path) -> _States:
        """Put them where a build's apt looks for them, as they were left.

        :param apt: a directory, not there yet; nor is it then if there are no lists
        :returns: what is there, for :meth:`keep`
        """
        try:
            with tarfile.open(self.file, "r:") as archive:
                for entry in archive:
                    _take_out(archive, entry, apt)
            os.utime(self.file)
        except FileNotFoundError:
            return {}
        except (OSError, tarfile.TarError, ValueError):
            shutil.rmtree(apt, ignore_errors=True)  # half a list is a wrong one
            with contextlib.suppress(OSError):
                self.file.unlink()
            return {}
        return _states(apt)

    def keep(self, apt: Path, had: _States) -> None:
        """Keep what a build's apt has left, if it is not what it ``had``."""
        with contextlib.suppress(OSError):
            found = _states(apt)
            if not found or found == had:
                return
            if sum(size for size, _ in found.values()) > MOST_BYTES:
                return
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_name(owned_name(self.file.name))
            try:
                _put_in(new, apt, found)
                new.replace(self.file)
            finally:
                new.unlink(missing_ok=True)
            _forget(self.file.parent)


def kept_lists(job: Job, below: Below, packages: Path) -> Lists | None:
    """The lists for a layer over ``below``.

    None where the spec's own variables are set in the build, since they may make any
    program do anything (``PERL5OPT``), and where all is to be had anew.

    :param packages: the endpoint's package cache
    """
    if job.fresh or job.image.build_env:
        return None
    key = layer_key("lists", below=below.keys, settings=job.site.apt_conf())
    return Lists(packages / "apt" / f"{key.removeprefix('sha256:')}.tar")


def _take_out(archive: tarfile.TarFile, entry: tarfile.TarInfo, apt: Path) -> None:
    folder, _, name = entry.name.partition("/")
    if not entry.isreg() or folder not in _FOLDERS or "/" in name or name in {"", ".."}:
        raise ValueError(f"not one of apt's files: {entry.name}")
    source = archive.extractfile(entry)
    place = apt / folder
    place.mkdir(parents=True, exist_ok=True)
    if source is not None:
        with (place / name).open("xb") as target:
            while piece := source.read(1024**2):
                target.write(piece)
        # By its time, apt asks whether there is a newer one.
        os.utime(place / name, (entry.mtime, entry.mtime))


def _put_in(file: Path, apt: Path, names: _States) -> None:
    with tarfile.open(file, "x:", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(names):
            with _opened(apt / name) as data:
                entry = tarfile.TarInfo(name)
                status = os.fstat(data.fileno())
                entry.size, entry.mtime = status.st_size, int(status.st_mtime)
                archive.addfile(entry, data)


def _opened(path: Path) -> IO[bytes]:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(number, "rb")
    if not stat.S_ISREG(os.fstat(number).st_mode):
        file.close()
        raise OSError(f"{path.name} is not a file")
    return file


def _states(apt: Path) -> dict[str, tuple[int, int]]:
    """Name → size and time, of the files that are worth keeping."""
    found = {}
    for folder, names in _FOLDERS.items():
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(apt / folder):
                status = entry.stat(follow_symlinks=False)
                wanted = names is None or entry.name in names
                if wanted and stat.S_ISREG(status.st_mode) and entry.name != "lock":
                    state = status.st_size, int(status.st_mtime)
                    found[f"{folder}/{entry.name}"] = state
    return found


def _forget(folder: Path) -> None:
    """Those of the bases that have not been built on for longest."""
    files = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MOST_BASES]:
        path.unlink(missing_ok=True)
