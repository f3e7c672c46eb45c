"""The endpoint's interchange, seen from the engine that it starts.

Runs in the endpoint process. Upstream hands an engine no reference to the interchange
(``endpoint/interchange.py``); two things need one. Its idle shutdown counts the tasks
that it took from the service since its last connection, and so knows nothing of tasks
resubmitted from the journal, nor that a build is movement. And whether the endpoint may
run a function is for it to say.

Guarantees: while the engine is busy, the interchange does not stop because it is idle.
Every other reason to stop (a signal, a lost parent, a failed executor) counts as ever.

Non-guarantees: where a later upstream works differently, its idle shutdown does as it
likes; ``tests/unit/endpoint/test_interchange.py`` would say so.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_MODULE = "globus_compute_endpoint.endpoint.interchange"


def starting() -> Any | None:
    """The interchange whose ``start_engine`` has led to this call, if one has.

    None in a process that has no interchange, such as ``gc-apptainer try``.
    """
    kind = getattr(sys.modules.get(_MODULE), "EndpointInterchange", None)
    frame: FrameType | None = sys._getframe(1)
    while kind is not None and frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
        frame = frame.f_back
    return None


def keep_while_busy(interchange: Any, busy: Callable[[], str]) -> None:
    """Have an idle shutdown wait until the engine has nothing left to do.

    :param busy: what the engine is busy with, in words; empty if it is not
    """
    main_loop = getattr(type(interchange)._main_loop, "__code__", None)
    stop = interchange.stop

    def stop_unless_busy() -> None:
        # Of its own, the main loop stops for nothing else than being idle.
        idle = sys._getframe(1).f_code is main_loop
        if idle and (what := busy()):
            log.info("the endpoint is not idle and goes on: %s", what)
            return
        stop()

    interchange.stop = stop_unless_busy


def allows(interchange: Any | None, function_id: uuid.UUID | None) -> bool:
    """Whether the endpoint may run a function; everything is allowed without one."""
    if interchange is None or function_id is None:
        return True
    return bool(interchange.function_allowed(str(function_id)))
