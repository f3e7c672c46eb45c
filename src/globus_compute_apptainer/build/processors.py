"""How many processors new processes may keep busy here.

Runs in the endpoint process. Programs that count the machine's own start a thread for
each, in a job that was given two of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Final

from globus_compute_apptainer.build.groups import Read, groups, read_text

_QUOTA: Final = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def _allowed() -> int:
    return len(os.sched_getaffinity(0))


def processors(read: Read = read_text, allowed: Callable[[], int] = _allowed) -> int:
    """Those that this process may run on, and no more than its control group and
    those above give it time for, rounded up; at least 1.

    :param allowed: how many it may run on
    """
    return max(1, min([allowed(), *_quotas(read)]))


def _quotas(read: Read) -> Iterator[int]:
    for group in groups("cpu", read):
        if group.version == 1:
            texts = [read(f"{group.folder}/{name}").strip() for name in _QUOTA]
        else:
            texts = read(f"{group.folder}/cpu.max").split()
        # No limit is "max", or -1.
        if len(texts) == 2 and all(text.isdigit() for text in texts) and int(texts[1]):
            yield math.ceil(int(texts[0]) / int(texts[1]))
