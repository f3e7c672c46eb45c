"""What a worker's process is like, for its children in containers to be the same.

Runs in worker processes; :mod:`.inside.traits` is the other side.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any


def traits() -> dict[str, Any]:
    """Umask, processors and resource limits of this process, as plain data."""
    return {
        "umask": _umask(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "limits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
    }


def _umask() -> int:
    """Read, not set and set back: other threads may be making files."""
    _, found, rest = Path("/proc/self/status").read_bytes().partition(b"\nUmask:")
    return int(rest.split(maxsplit=1)[0], 8) if found else 0o022
