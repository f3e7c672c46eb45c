"""Processes, seen from outside: who is below whom, and who is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

DEADLINE = 120.0


def until(condition: Callable[[], object], what: str | Callable[[], str]) -> None:
    """:param what: is wrong if it does not come true; asked for at the end"""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        late = time.monotonic() > deadline
        assert not late, what if isinstance(what, str) else what()
        time.sleep(0.02)  # between looks, not instead of one


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process that is not a zombie."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text("latin-1").rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ")
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), command.decode("latin-1"))
    return found


def descendants(*ancestors: int) -> dict[int, str]:
    everything = processes()
    found: dict[int, str] = {}
    family = set(ancestors)
    while True:
        new = {p: c for p, (pp, c) in everything.items() if pp in family}
        if new.keys() <= found.keys():
            return found
        found |= new
        family |= new.keys()


def parent(pid: int) -> int:
    return processes()[pid][0]


def survivors(former: dict[int, str]) -> dict[int, str]:
    """Which of the processes live, except where a number was given to another."""
    now = processes()
    return {p: c for p, c in former.items() if p in now and now[p][1] == c}


def alive(pids: Iterable[int]) -> set[int]:
    return set(pids) & processes().keys()
