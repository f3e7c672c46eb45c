"""What a child takes from its worker's process: limits, mask, processors, chance.

Runs in the child, once, before its first task. The variables and the folder come with
every task.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any, Dict


def take(traits: Dict[str, Any]) -> None:
    """Be like the worker.

    A limit that the worker may have and this process may not stays as it is.
    """
    os.umask(traits["umask"])
    with contextlib.suppress(OSError):  # processors that are not ours
        os.sched_setaffinity(0, traits["affinity"])
    for name, limits in traits["limits"].items():
        number = getattr(resource, name, None)
        if number is not None:
            _limit(number, tuple(limits))
    _diverge()


def _limit(number: int, wanted: Any) -> None:
    soft, hard = wanted
    for limits in ((soft, hard), (soft, resource.getrlimit(number)[1])):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(number, limits)
            return


def _diverge() -> None:
    """Children of one zygote must not draw the same random numbers. Python itself
    sees to its own module's, not to those of libraries that were preloaded."""
    for name in ("numpy.random", "torch"):
        module: Any = sys.modules.get(name)
        if module is not None:
            with contextlib.suppress(Exception):
                module.seed()
