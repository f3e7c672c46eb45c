"""How much memory new processes may take here.

Runs in the endpoint process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from globus_compute_apptainer.build.groups import Read, groups, read_text

# By version of control groups: the names of a limit and of what is used of it.
_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}


def available_memory(read: Read = read_text) -> int:
    """Bytes free in the machine, in this process's control group and those above."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    machine = int(found[1]) * 1024 if found else 0
    return min([machine, *_left_in_groups(read)])


def _left_in_groups(read: Read) -> Iterator[int]:
    for group in groups("memory", read):
        names = _FILES[group.version]
        texts = [read(f"{group.folder}/{name}").strip() for name in names]
        if all(text.isdigit() for text in texts):
            yield max(0, int(texts[0]) - int(texts[1]))
