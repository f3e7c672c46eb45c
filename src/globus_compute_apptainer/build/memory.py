"""How much memory new processes may take here.

Runs in the endpoint process. A batch system limits the control group of a job, deep
below the root of the hierarchy; what counts is the tightest limit on the way up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

Read = Callable[[str], str]

# By version of control groups: where memory is governed, its limit and its use.
_V1: Final = (
    "/sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
)
_V2: Final = ("/sys/fs/cgroup", "memory.max", "memory.current")


def read_text(path: str) -> str:
    """Content of a file of the kernel's; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def available_memory(read: Read = read_text) -> int:
    """Bytes free in the machine, in this process's control group and those above."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    machine = int(found[1]) * 1024 if found else 0
    return min([machine, *_left_in_groups(read)])


def _left_in_groups(read: Read) -> Iterator[int]:
    for row in read("/proc/self/cgroup").splitlines():
        number, _, rest = row.partition(":")
        controllers, _, group = rest.partition(":")
        if "memory" in controllers.split(","):
            root, limit, used = _V1
        elif number == "0":
            root, limit, used = _V2
        else:
            continue
        # In a container the path may be the host's; the root is then its own group.
        path = PurePosixPath("/", group)
        for folder in (path, *path.parents):
            place = f"{root}{folder}".rstrip("/")
            texts = [read(f"{place}/{name}").strip() for name in (limit, used)]
            if all(text.isdigit() for text in texts):
                yield max(0, int(texts[0]) - int(texts[1]))
