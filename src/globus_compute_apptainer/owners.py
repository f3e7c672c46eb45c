"""Names of temporary files that prove whether their owner is dead.

Runs in the endpoint process and in ``gc-apptainer``. A process that is killed with
SIGKILL leaves its directories behind. Their names say who owns them: machine, boot,
process-id namespace, process id and the process's start time, so that a dead owner is
proven, by any process of the same machine, and never guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER: Final = re.compile(
    r"(?P<host>[0-9a-f]{10})-(?P<boot>[0-9a-f]{8})"
    r"-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\Z"
)


def owned_name(prefix: str) -> str:
    """A file name that nobody else chooses, and that says who this process is."""
    host, boot, namespace = machine()
    pid = os.getpid()
    owner = f"{host}-{boot}-{namespace}-{pid}-{start_time(pid)}"
    return f"{prefix}-{owner}-{secrets.token_hex(4)}"


def of_the_dead(folder: Path, prefix: str = "") -> Iterator[Path]:
    """What dead processes of this user and machine left in ``folder``.

    :param prefix: of the names to look at; empty for all
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # What is before the owner may itself hold hyphens.
            owner = _OWNER.search(entry.name)
            begins = entry.name.startswith(f"{prefix}-" if prefix else "")
            if owner and begins and _mine(entry) and is_dead(owner):
                yield Path(entry.path)


def is_dead(owner: re.Match[str]) -> bool:
    """Proven for this machine only; of another one nothing is known."""
    host, boot, namespace = machine()
    if owner["host"] != host:
        return False
    if owner["boot"] != boot:
        return True
    return owner["namespace"] == namespace and start_time(int(owner["pid"])) != int(
        owner["start"]
    )


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
    """Clock ticks from boot to the start of ``pid``; 0 if there is no such process."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


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
