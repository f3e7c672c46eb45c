"""What ``gc-apptainer doctor`` may ask of this machine, and nothing else.

Runs in a person's shell. Every question has a plain answer and none raises for a
machine that is merely bad; tests put a made-up machine in this one's place.
"""

from __future__ import annotations

import base64
import http.client
import os
import pwd
import shutil
import ssl
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.scratch import choose_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import locks
from globus_compute_apptainer.store.cache import VERSION
from globus_compute_apptainer.store.presence import file_system_time

FETCH_TIMEOUT_SECONDS = 5.0
_MORE_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Ran:
    """How a program ended: its status (127: it could not be started), its output."""

    status: int
    output: str


@dataclass(frozen=True)
class Mount:
    """The filesystem that a path is on."""

    point: str
    kind: str


@dataclass(frozen=True)
class Reply:
    """What a server said: an HTTP status, or 0 and the reason why there is none."""

    status: int
    reason: str = ""


class Host:
    """This machine, for the current user.

    :param apptainer_program: as configured; None to search PATH
    """

    def __init__(self, apptainer_program: str | None = None) -> None:
        self._apptainer_program = apptainer_program
        self.environ: Mapping[str, str] = os.environ
        self.uid = os.geteuid()
        self.prefix = Path(sys.prefix)

    @cached_property
    def user(self) -> str:
        """The user's name, or number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def apptainer(self) -> Apptainer:
        """The Apptainer that would be used.

        :raises HostError: why there is none; the one answer that is an exception
        """
        return Apptainer.find(self._apptainer_program)

    def text(self, path: Path | str) -> str | None:
        """A small file's text, stripped; None if it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def program(self, name: str, *folders: Path | str) -> Path | None:
        """A program in ``folders``, PATH, or where daemons are kept."""
        search = [*map(str, folders), self.environ.get("PATH", ""), _MORE_FOLDERS]
        found = shutil.which(name, path=":".join(filter(None, search)))
        return Path(found) if found else None

    def set_user_id(self, path: Path) -> bool:
        """Whether a program runs as its owner, root."""
        try:
            status = path.stat()
        except OSError:
            return False
        return status.st_uid == 0 and bool(status.st_mode & 0o4000)

    def run(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Ran:
        """Run a program to its end, its output merged."""
        lines: list[str] = []
        env = self.environ if environ is None else environ
        try:
            ended = run(argv, env=env, timeout=timeout, on_line=lines.append)
        except OSError as error:
            return Ran(127, str(error))
        return Ran(ended.returncode, "\n".join(lines))

    def open_error(self, path: Path | str) -> str:
        """Why a file cannot be opened for reading and writing; empty if it can."""
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def existing(self, path: Path) -> Path:
        """``path``, or the nearest folder above it that is there."""
        # Path.is_dir() raises where a folder above may not be searched.
        return next(p for p in (path, *path.parents) if os.path.isdir(p))  # noqa: PTH112

    def write_error(self, folder: Path) -> str:
        """Why nothing can be written in a folder; empty if something was."""
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"\0")
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def lock_error(self, folder: Path) -> str:
        """Why locks do not work in a folder; empty if they exclude."""
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as private:
                path = Path(private, "lock")
                with locks.hold(path, cancel=threading.Event(), timeout=0):
                    return "" if self._other_is_excluded(path) else _NOT_EXCLUDED
        except OSError as error:
            return str(error)
        except StoreError as error:
            return error.message

    def _other_is_excluded(self, path: Path) -> bool:
        """Another process must not get the lock that this one holds."""
        argv = [sys.executable, "-c", _TAKE_LOCK, str(path)]
        return self.run(argv).status == _HELD

    def clock_difference(self, folder: Path) -> float | None:
        """Seconds by which a file system's clock is ahead of this machine's; None
        where nothing can be written."""
        try:
            return file_system_time(folder) - time.time()
        except OSError:
            return None

    def is_cache(self, path: Path) -> bool:
        """Whether there is an image cache of this version."""
        return os.path.isdir(path / VERSION / "index")  # noqa: PTH112 - never raises

    def free(self, path: Path) -> int:
        """Bytes that the user may still write there."""
        return shutil.disk_usage(path).free

    def mount(self, path: Path) -> Mount:
        """The filesystem that ``path`` is on."""
        table = self.text("/proc/self/mountinfo") or ""
        return find_mount(table, path.resolve())

    def scratch(self, config: BuildConfig) -> Path:
        """Where builds would work.

        :raises ContainerError: why they cannot
        """
        return choose_scratch(config)

    def fetch(self, url: str, ca_bundle: Path | None = None) -> Reply:
        """The status of a HEAD request; user and password in the URL are sent."""
        parts = urlsplit(url)
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        request = urllib.request.Request(place, method="HEAD")  # noqa: S310
        if parts.username is not None:
            given = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            token = base64.b64encode(given.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        try:
            trust = ssl.create_default_context(cafile=ca_bundle)
            with urllib.request.urlopen(  # noqa: S310 - http and https only, see callers
                request, timeout=FETCH_TIMEOUT_SECONDS, context=trust
            ) as answer:
                return Reply(answer.status)
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.reason)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Reply(0, str(getattr(error, "reason", "") or error))


_HELD = 75
_NOT_EXCLUDED = "two processes got the same lock"
_TAKE_LOCK = f"""\
import sys, threading
from pathlib import Path
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import locks
from globus_compute_apptainer.store.cache import VERSION
try:
    with locks.hold(Path(sys.argv[1]), cancel=threading.Event(), timeout=0):
        pass
except StoreError as error:
    sys.exit({_HELD} if error.code == "lock-timeout" else 1)
"""


def find_mount(table: str, path: Path) -> Mount:
    """The mount that ``path`` is on, from the text of ``/proc/self/mountinfo``."""
    best = Mount("/", "unknown")
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = _unescaped(fields[4])
        if path.is_relative_to(point) and len(point) >= len(best.point):
            best = Mount(point, right.split()[0])
    return best


def _unescaped(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
