"""uv: where it is, how it is called on the host, and what it says.

Runs in the endpoint process. The package cache of an endpoint, which only uv on the
host ever sees::

    uv/          uv's own
    standins/    what bases have, see :mod:`.standins`; by content, never changed
    compiled/    bytecode of wheels, see :mod:`.compiled`
    work/        environments being filled, removed at the end and swept
    programs/    uv as a static program, for what runs inside images
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.processors import processors
from globus_compute_apptainer.build.python import settings, standins
from globus_compute_apptainer.build.scratch import remove_tree

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Package
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.python.resolution import Pin

COMPILE: Final = ("pip", "compile", "--generate-hashes", "--no-header", "--no-annotate")
INSTALL: Final = ("pip", "install", "--no-deps")

PLAIN: Final = {"NO_COLOR": "1", "UV_NO_WRAP": "1", "UV_NO_PROGRESS": "1"}
"""One message, one line: they are read by programs."""

_SETTINGS: Final = {
    **PLAIN,
    "UV_COMPILE_BYTECODE": "0",
    "UV_PYTHON_DOWNLOADS": "never",
}
_PRINTED_LOCK: Final = re.compile(r"\s+--hash=|[a-z0-9][a-z0-9-]*( @ \S+|==\S+) \\$")
_GOT: Final = re.compile(r"\s*(?:Downloaded|Built) (\S+?)(?:==\S*| @ .*)?$")


def find() -> Path | None:
    """This environment's uv."""
    try:
        import uv  # noqa: PLC0415 - part of the endpoint extra only

        return Path(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return None


def version() -> str:
    """Of this environment's uv; empty without one."""
    try:
        return metadata.version("uv")
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class HostUv:
    """uv on the host, with the shared cache. It must never run code of packages.

    :param work: a private directory on the file system of the cache
    """

    job: Job
    packages: Path
    work: Path

    def __call__(
        self, argv: Sequence[str], follower: Follower, links: Path | None = None
    ) -> bool:
        """Whether uv did it; what it says goes to ``follower``.

        :param links: a directory of further wheels
        :raises BuildError: there is no uv, or the build's time is up
        """
        program = find()
        if program is None:
            raise self.job.error(
                "uv is not installed beside the endpoint",
                hint="install globus-compute-apptainer[endpoint]",
            )
        options = ["--no-index"] if self.job.site.no_index else []
        try:
            ended = self.job.attempt(
                [str(program), *argv, *options],
                env=self._environment(links),
                cwd=self.work,
                shown=f"uv {' '.join(argv[:2])}",
                on_line=follower.line,
            )
        finally:
            sweep(self.packages / "uv")
        return ended.ok

    def _environment(self, links: Path | None) -> dict[str, str]:
        """Neither settings nor credentials of this user but those of the site."""
        home = self.work / "home"
        home.mkdir(exist_ok=True)
        most = str(processors())
        found = {
            "UV_CONCURRENT_BUILDS": most,
            "UV_CONCURRENT_INSTALLS": most,
            **self.job.site.host,
            **_SETTINGS,
            "HOME": str(home),
            "TMPDIR": str(self.work),
            "UV_CACHE_DIR": str(self.packages / "uv"),
        }
        public = "" if self.job.site.no_index else indexes.public()
        found, text = settings.replaced(found, public)
        if text:
            file = self.work / "uv.toml"  # the directory is private
            file.write_text(text, encoding="utf-8")
            found["UV_CONFIG_FILE"] = str(file)
        return with_links(found, links.as_uri() if links else "")


def sweep(cache: Path) -> None:
    """Remove what a uv that was killed left in its cache, if none is at work there.

    uv holds a lock on ``.lock`` while it uses a cache (its ``uv-cache/src/lib.rs``),
    and keeps unfinished things in ``.tmp*``. Where the lock cannot be had, they stay.
    """
    with contextlib.suppress(OSError), (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in cache.glob(".tmp*"):
            remove_tree(left) if left.is_dir() else left.unlink()


def with_links(environment: Mapping[str, str], place: str) -> dict[str, str]:
    """``environment`` with one more place for uv to find wheels in."""
    places = [environment.get("UV_FIND_LINKS", ""), place]
    if not place:
        return dict(environment)
    return {**environment, "UV_FIND_LINKS": ",".join(p for p in places if p)}


def hash_options(pins: Iterable[Pin]) -> list[str]:
    """Hashes are checked wherever they are known; here whether they must be."""
    return ["--require-hashes"] if all(pin.hashes for pin in pins) else []


@dataclass
class Follower:
    """Passes on what uv says, but for the lock that it prints; tells progress.

    :param total: packages to come
    :param held: whether nothing is passed on before :meth:`release`
    """

    job: Job
    total: int = 0
    held: bool = False
    said: list[str] = field(default_factory=list)
    _done: int = 0

    def line(self, text: str) -> None:
        if _PRINTED_LOCK.match(text):
            return
        self.said.append(text)
        if not self.held:
            self._pass_on(text)

    def release(self) -> None:
        """Pass on what was held back."""
        if self.held:
            self.held = False
            for text in self.said:
                self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        self.job.transcript.line(text)
        if found := _GOT.match(text):
            self._done += 1
            total = max(self.total, self._done)
            self.job.transcript.progress(self._done, total, "packages", found[1])


def stand_in_folder(packages: Path, installed: Sequence[Package]) -> Path:
    """The directory of the stand-ins for what a base has, made if it is not there.

    The same for every base that has the same, so that uv's cache knows it again.
    """
    files = standins.stand_ins(installed)
    told = hashlib.sha256()
    for name, content in sorted(files.items()):
        told.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    place = packages / "standins" / told.hexdigest()
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{os.getpid()}-{secrets.token_hex(8)}")
    aside.mkdir()
    for name, content in files.items():
        (aside / name).write_bytes(content)
    try:
        aside.rename(place)
    except OSError:
        remove_tree(aside)
        if not place.is_dir():
            raise
    return place


def static_program(host: HostUv, machine: str) -> Path | None:
    """uv that runs in every image of this machine's kind, from the package index.

    None where the index does not have it; nothing is logged then.
    """
    name = f"uv-{version()}-{machine}"
    place = host.packages / "programs" / name
    if (place / "bin/uv").is_file():
        return place / "bin/uv"
    aside = host.work / name
    argv = [*INSTALL, "--target", str(aside), "--link-mode", "copy"]
    argv += ["--python-platform", f"{machine}-unknown-linux-musl"]
    argv += ["--only-binary", ":all:", f"uv=={version()}"]
    if not host(argv, Follower(host.job, held=True)):
        return None
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.rename(place)
    except OSError:
        if not place.is_dir():
            raise
    return place / "bin/uv"
