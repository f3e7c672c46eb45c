"""How much memory warm containers take, and may take.

Runs in the keeper; imports little, see :mod:`.__main__`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable


def allowed() -> int:
    """Bytes that warm containers may take where nobody says: half of what is here, in
    the machine or in this process's control group."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_group_limits()]) // 2


def taken(pids: Iterable[int], enough: int = 0) -> int:
    """Bytes that processes take together; what some share counts once (PSS).

    :param enough: if no more than this is taken, sharing is not looked at, which takes
        a hundred times as long
    """
    pids = list(pids)
    resident = sum(_resident(pid) for pid in pids)
    return resident if resident <= enough else sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(_read(f"/proc/{pid}/statm").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0  # it has ended


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)


def _group_limits() -> list[int]:
    """The limits of this process's control groups and of those above them."""
    found = []
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":  # version 1
            place, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        elif not controllers:
            place, name = "/sys/fs/cgroup", "memory.max"
        else:
            continue
        while path not in ("", "/"):
            found += [int(n) for n in _lines(f"{place}{path}/{name}") if n.isdigit()]
            path = path.rpartition("/")[0]
    return found


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return _read(path).splitlines()
    return []


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
