"""What goes wrong with a task is that task's result.

Runs in the endpoint process.
"""

from __future__ import annotations

import logging

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.errors import ContainerError, internal

log = logging.getLogger(__name__)


class ErrorsTo:
    """Whatever goes wrong inside ends the task in an error and goes no further."""

    __slots__ = ("_task_f",)

    def __init__(self, task_f: upstream.GCFuture) -> None:
        self._task_f = task_f

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if not isinstance(error, ContainerError):
            log.error(
                "task %s could not be run", self._task_f.gc_task_id, exc_info=error
            )
            error = internal(error)
        _fail(self._task_f, error)
        return True


def _fail(task_f: upstream.GCFuture, error: ContainerError) -> None:
    # Set already where the stock engine's own error handling was quicker.
    if not task_f.done():
        task_f.set_result(upstream.error_result(task_f.gc_task_id, error))
