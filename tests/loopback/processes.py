"""Finding and ending every process that a test bed started, read from ``/proc``.

An endpoint's user endpoints and Parsl's workers start sessions of their own, so neither
a process group nor the process tree holds all of them. They inherit one environment
variable, though: that is the mark looked for here. Processes that drop their
environment (inside a container) are found as children of marked ones.

Not guaranteed: a process that drops its environment *and* loses its parent is missed.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

POLL_SECONDS = 0.1


def marked(mark: str) -> dict[int, str]:
    """Living processes with ``mark`` in their environment, and their descendants."""
    parents = _parents()
    found = {pid for pid in parents if mark.encode() in _environment(pid)}
    for pid in sorted(parents):
        if _has_ancestor(pid, found, parents):
            found.add(pid)
    found.discard(os.getpid())
    return {pid: command_line(pid) for pid in sorted(found)}


def command_line(pid: int) -> str:
    """What the process says it runs; empty once it is gone."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def wait_gone(find: Callable[[], dict[int, str]], timeout: float) -> dict[int, str]:
    """Wait until ``find`` finds nothing; returns what is left at the deadline."""
    deadline = time.monotonic() + timeout
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; those that have already gone are fine."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _environment(pid: int) -> set[bytes]:
    return set(_read(pid, "environ").split(b"\0"))


def _parents() -> dict[int, int]:
    """Parent of each living process; zombies, which only wait to be reaped, not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # "PID (NAME) STATE PPID ...": the name may hold anything, so split after it
            fields = _read(int(entry.name), "stat").rpartition(b")")[2].split()
            if len(fields) > 1 and fields[0] not in (b"Z", b"X"):
                parents[int(entry.name)] = int(fields[1])
    return parents


def _has_ancestor(pid: int, among: set[int], parents: dict[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) > 1:
        if pid in among:
            return True
    return False
