"""The memory of what runs in and for containers, shared pages counted in shares."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.run.measures import Sample

# What Apptainer starts outside of a container, by the kernel's name for it.
HELPERS = re.compile(r"apptainer|starter|squashfuse|fuse-overlayfs|fuse2fs|Apptainer")


def processes() -> set[int]:
    """Of this user."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def weigh(candidates: set[int]) -> Sample:
    """Proportional set size of those that are on the container's side: in another
    mount namespace than ours, or Apptainer's own."""
    total, counted, hidden = 0, 0, 0
    for pid in candidates:
        if not _is_ours_to_count(pid):
            continue
        counted += 1
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            hidden += 1
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        total += int(found[1]) if found else 0
    return {"PSS MB": total / 1000, "processes": counted, "unreadable": hidden}


def _is_ours_to_count(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if HELPERS.search(name):
            return True
        here = os.readlink("/proc/self/ns/mnt")
        return os.readlink(f"/proc/{pid}/ns/mnt") != here
    except OSError:
        return False
