"""Bytecode of wheels: compiled once, and laid into every environment that has them.

Runs in the endpoint process. Where an image has the same minor version of Python as
this process, this process's own Python compiles what wheels brought, in the background,
after the first image with them; the next environment has its bytecode from the start.
(An image's own Python is not trusted with what other images get.) In the package cache,
a directory for each wheel, never changed::

    compiled/TAG-ENVIRONMENT/KEY/pandas/__pycache__/….pyc

Its key is made of the wheel's ``RECORD``, which has a hash of every source, and of when
uv unpacked it: the bytecode has its sources' times and sizes in it, and a Python that
finds other ones there (a ``post`` may have changed them) does not use it.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build import squashfs
from globus_compute_apptainer.build.layer import place_marker
from globus_compute_apptainer.build.processors import processors
from globus_compute_apptainer.build.python import bytecode, venv
from globus_compute_apptainer.build.scratch import private_folder

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Python

log = logging.getLogger(__name__)

FOLDER: Final = "compiled"

TIME_STEP_SECONDS: Final = 2.0
"""Bytecode has the second in it that its source was written in; and clocks differ."""

Run = Callable[[Sequence[str]], bool]
"""Runs a program; whether it ended well."""


@dataclass(frozen=True)
class Wheel:
    """What is installed of one wheel.

    :param key: of its bytecode
    :param sources: path → SHA-256, as ``RECORD`` writes it, of each Python file below
        ``site-packages``
    """

    key: str
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Compiled:
    """The bytecode that there is for one environment's place and one kind of Python.

    :param packages: the endpoint's package cache
    :param env: absolute path of the environment in images
    :param minor: of its Python
    """

    packages: Path
    env: str
    minor: str

    @classmethod
    def of(cls, packages: Path, env: str, python: Python) -> Compiled | None:
        """None where this process's Python cannot compile for the image's."""
        ours = sys.implementation.name, "{}.{}".format(*sys.version_info[:2])
        alike = (python.implementation, python.minor) == ours
        plain = python.version.replace(".", "").isdigit()
        if not alike or not plain or sys.version_info.releaselevel != "final":
            return None
        return cls(packages, env, python.minor)

    def lay(self, env: Path) -> bool:
        """Lay what there is into an environment; whether that is all it needs."""
        site = venv.site_packages(env, self.minor)
        try:
            wheels = installed(site)
            laid = [
                _is_older(wheel, site) and _link(self._place(wheel), site)
                for wheel in sound(wheels)
            ]
        except OSError as error:  # a RECORD may say anything
            log.info("no bytecode is laid in: %s", error)
            return False
        return len(laid) == len(wheels) and all(laid)

    def pack(self, layer: Path, target: Path, key: str, run: Run) -> bool:
        """Write ``target``, a squashfs file with the bytecode of a layer's
        environment. What of it was missing is compiled and kept.

        :param layer: squashfs file with the environment
        :param key: names the marker inside
        :returns: whether it is there, and is all that the environment needs
        """
        try:
            with private_folder(self.packages / "work") as work:
                root = work / "root"
                place_marker(root, key)
                root.chmod(0o755)
                filled = self._fill(layer, work, root, run)
                return filled and run(bytecode.packing(root, target))
        except OSError as error:
            log.warning("bytecode of wheels cannot be made: %s", error)
            return False

    def _fill(self, layer: Path, work: Path, root: Path, run: Run) -> bool:
        unpacked = work / "unpacked"
        site = venv.site_packages(unpacked / self.env.lstrip("/"), self.minor)
        inside = site.relative_to(unpacked)
        told = [f"{inside}/*.dist-info/{name}" for name in ("RECORD", "WHEEL")]
        if not _unpack(layer, unpacked, told, work, run):
            return False
        wheels = installed(site)
        if len(sound(wheels)) != len(wheels):
            return False
        missing = [wheel for wheel in wheels if not self._place(wheel).is_dir()]
        if not self._compile(missing, layer, site, work, run):
            return False
        for wheel in wheels:
            _link(self._place(wheel), root / inside)
        return True

    def _compile(
        self, wheels: Sequence[Wheel], layer: Path, site: Path, work: Path, run: Run
    ) -> bool:
        unpacked, out = work / "unpacked", work / "out"
        inside = site.relative_to(unpacked)
        names = [f"{inside}/{path}" for wheel in wheels for path in wheel.sources]
        if names and not _unpack(layer, unpacked, names, work, run):
            return False
        if not all(_is(site / p, h) for w in wheels for p, h in w.sources.items()):
            return False
        argv = [sys.executable, "-I", "-S", "-B", "-c", bytecode.PROGRAM]
        argv += [str(processors()), str(out), str(unpacked), f"/{inside}"]
        if names and not run(argv):
            return False
        for wheel in wheels:
            self._keep(wheel, out / inside, work)
        return True

    def _keep(self, wheel: Wheel, found: Path, work: Path) -> None:
        new, place = work / wheel.key, self._place(wheel)
        new.mkdir()
        for path in wheel.sources:
            compiled = Path(_compiled_name(path))
            with contextlib.suppress(FileNotFoundError):  # it does not compile
                (new / compiled).parent.mkdir(parents=True, exist_ok=True)
                (found / compiled).replace(new / compiled)
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another build was faster
            new.rename(place)

    def _place(self, wheel: Wheel) -> Path:
        place = hashlib.sha256(self.env.encode()).hexdigest()[:16]
        kind = f"{sys.implementation.cache_tag}-{place}"
        return self.packages / FOLDER / kind / wheel.key


def installed(site: Path) -> list[Wheel]:
    """The wheels whose files are in a ``site-packages``."""
    return [_wheel(path) for path in sorted(site.glob("*.dist-info/RECORD"))]


def sound(wheels: Sequence[Wheel]) -> list[Wheel]:
    """Those that share no file with another: whose it is then, nobody knows."""
    owners = Counter(path for wheel in wheels for path in wheel.sources)
    return [wheel for wheel in wheels if all(owners[p] == 1 for p in wheel.sources)]


def _wheel(record: Path) -> Wheel:
    content = record.read_bytes()
    unpacked = (record.parent / "WHEEL").stat()
    key = hashlib.sha256(b"%d " % int(unpacked.st_mtime) + content).hexdigest()
    rows = csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    sources = {
        row[0]: row[1].removeprefix("sha256=")
        for row in rows
        if len(row) > 1 and _is_source(row[0])
    }
    return Wheel(key, sources)


def _is_older(wheel: Wheel, site: Path) -> bool:
    """Whether a source that is changed from now on will have another time."""
    times = [(site / path).stat().st_mtime for path in wheel.sources]
    return time.time() - max(times, default=0.0) >= TIME_STEP_SECONDS


def _is_source(name: str) -> bool:
    """Whether it is compiled, see :data:`.bytecode.PROGRAM`."""
    path = Path(name)
    left_out = {"..", "__pycache__", "tests", "test"} & set(path.parts[:-1])
    return path.suffix == ".py" and not path.is_absolute() and not left_out


def _compiled_name(source: str) -> str:
    path = Path(source)
    name = f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    return str(path.with_name("__pycache__") / name)


def _is(path: Path, told: str) -> bool:
    """Whether a file has the hash that ``RECORD`` tells of it."""
    try:
        found = hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return False
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode() == told


def _unpack(
    layer: Path, target: Path, names: Sequence[str], work: Path, run: Run
) -> bool:
    listing = work / "wanted"
    listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    program = squashfs.find("unsquashfs") or "unsquashfs"
    quiet = ("-no-progress", "-no-xattrs", "-processors", str(processors()))
    where = ("-force", "-dest", str(target), "-ef", str(listing))
    return run([program, *quiet, *where, str(layer)])


def _link(source: Path, target: Path) -> bool:
    """Show the files of one tree in another; whether there is such a tree."""
    if not source.is_dir():
        return False
    for folder, names in _folders(source):
        place = target / folder.relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            _link_file(folder / name, place / name)
    return True


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return  # the wheel brought its own
    except OSError:  # too many links, or none here
        shutil.copy2(source, target)


def _folders(tree: Path) -> Iterator[tuple[Path, list[str]]]:
    """Directories with files in them."""
    waiting = [tree]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as found:
            entries = list(found)
        inside = [Path(entry.path) for entry in entries if entry.is_dir()]
        waiting += inside
        if names := [entry.name for entry in entries if entry.is_file()]:
            yield folder, names
