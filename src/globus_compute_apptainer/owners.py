"""Who a process is, so that its death can be proven.

Runs in the endpoint process and in ``gc-apptainer``. A process that is killed with
SIGKILL leaves files behind. Their names say who owns them: machine, boot, process-id
namespace, process id and the process's start time. So a dead owner is proven, by any
process of the same machine, and never guessed; of a process of another machine, or of
another namespace, nothing is known.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESS: Final = (
    r"(?P<host>[0-9a-f]{10})-(?P<boot>[0-9a-f]{8})"
    r"-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)"
)
_OWNED: Final = re.compile(_PROCESS + r"-[0-9a-f]{8}\Z")
_ALONE: Final = re.compile(_PROCESS + r"\Z")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from every other one that there is or was.

    :param host: token of its machine
    :param boot: token of that machine's boot
    :param namespace: the process-id namespace in which ``pid`` has a meaning
    :param start: clock ticks from boot to its start
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: int

    @classmethod
    def current(cls) -> Owner:
        """This process, also in a forked child."""
        return _current(os.getpid())

    @classmethod
    def parse(cls, token: str) -> Owner | None:
        """The inverse of ``str(owner)``; None for any other text."""
        found = _ALONE.match(token)
        return None if found is None else cls._of(found)

    @classmethod
    def of_name(cls, name: str) -> Owner | None:
        """Whose a name is that :func:`owned_name` made; None for any other."""
        found = _OWNED.search(name)
        return None if found is None else cls._of(found)

    @classmethod
    def _of(cls, found: re.Match[str]) -> Owner:
        host, boot, namespace, pid, start = found.group(1, 2, 3, 4, 5)
        return cls(host, boot, namespace, int(pid), int(start))

    def __str__(self) -> str:
        return f"{self.host}-{self.boot}-{self.namespace}-{self.pid}-{self.start}"

    def is_dead(self, seen_by: Owner | None = None) -> bool:
        """Whether its death is proven; False also where nothing is known.

        :param seen_by: the process that asks; by default this one
        """
        here = seen_by or Owner.current()
        if self == here or self.host != here.host:
            return False
        if self.boot != here.boot:
            return True
        return self.namespace == here.namespace and not _may_live(self.pid, self.start)

    def is_near(self, other: Owner) -> bool:
        """Whether the death of one can be proven by the other."""
        return (self.host, self.namespace) == (other.host, other.namespace)


def owned_name(prefix: str, owner: Owner | None = None) -> str:
    """A file name that nobody else chooses, and that says who its owner is.

    :param owner: by default this process
    """
    return f"{prefix}-{owner or Owner.current()}-{secrets.token_hex(4)}"


def of_the_dead(folder: Path, prefix: str = "") -> Iterator[Path]:
    """What dead processes of this user and machine left in ``folder``.

    :param prefix: of the names to look at; empty for all
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(f"{prefix}-" if prefix else ""):
                continue
            # What is before the owner may itself hold hyphens.
            owner = Owner.of_name(entry.name)
            if owner and _mine(entry) and owner.is_dead():
                yield Path(entry.path)


def machine() -> tuple[str, str, str]:
    """This machine, its boot, and the process-id namespace, as short tokens."""
    host = f"{socket.gethostname()} {_text('/etc/machine-id')}"
    boot = _text("/proc/sys/kernel/random/boot_id")
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = "0"
    return _digest(host)[:10], _digest(boot)[:8], namespace


def start_time(pid: int) -> int:
    """Clock ticks from boot to the start of ``pid``; 0 if there is no such process,
    also where it is dead and merely not waited for."""
    fields = _stat(pid)
    return int(fields[19]) if fields and not _is_zombie(pid, fields) else 0


@functools.lru_cache(maxsize=1)
def _current(pid: int) -> Owner:
    return Owner(*machine(), pid, start_time(pid))


def _may_live(pid: int, start: int) -> bool:
    """False only where it is certain: a ``/proc`` that hides the processes of other
    users shows nothing of them, but they can still be asked for."""
    if fields := _stat(pid):
        return int(fields[19]) == start and not _is_zombie(pid, fields)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    # Of this user, so it would have been seen: it has just ended, or just begun.
    return start_time(pid) == start


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; none if it cannot be read."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields if len(fields) > 19 else []


def _is_zombie(pid: int, fields: list[str]) -> bool:
    """Dead and merely not waited for; a thread may live on without the first one."""
    if fields[0] not in "ZX":
        return False
    try:
        return len(os.listdir(f"/proc/{pid}/task")) <= 1  # noqa: PTH208
    except OSError:
        return True


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _mine(entry: os.DirEntry[str]) -> bool:
    try:
        own = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        return own and not entry.is_symlink()
    except OSError:
        return False
