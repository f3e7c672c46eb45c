"""Everything that leans on the insides of Globus Compute and Parsl.

Runs in the endpoint process. What is used, and the versions it was read in, is
listed in ``docs/decisions/0003-upstream-window.md``; a release of upstream that
changes one of these has to be answered here and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import (
    EPStatusReport,
    Result,
    ResultErrorDetails,
    TaskTransition,
)
from globus_compute_common.tasks import ActorName, TaskState
from globus_compute_endpoint.endpoint.rabbit_mq import ResultPublisher
from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from globus_compute_sdk.serialize import ComputeSerializer
from packaging.specifiers import SpecifierSet

from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.worker import runner
from globus_compute_apptainer.worker.order import ContainerOrder
from globus_compute_apptainer.worker.terms import Terms

__all__ = [
    "EPStatusReport",
    "GCFuture",
    "GlobusComputeEngine",
    "attempt",
    "await_stopping_publishers",
    "bind",
    "error_code",
    "error_result",
    "failure",
    "log_with_the_endpoint",
    "outside_window",
    "terms",
    "value_result",
]

WINDOW = {
    "globus-compute-endpoint": SpecifierSet(">=4.16,<5", prereleases=True),
    "globus-compute-sdk": SpecifierSet(">=4.16,<5", prereleases=True),
    "parsl": SpecifierSet(">=2026.7.27", prereleases=True),
}


def outside_window(version: Callable[[str], str] = metadata.version) -> str:
    """One line naming the first package outside the tested window, or ``""``."""
    for name, window in WINDOW.items():
        found = version(name)
        if found not in window:
            return (
                f"{name} {found} is outside the supported window {name}{window};"
                " container tasks may fail"
            )
    return ""


def log_with_the_endpoint() -> None:
    """Write our records where the endpoint writes its own.

    Its ``logging_config.py`` sets up its own packages' loggers and no other.
    """
    theirs = logging.getLogger("globus_compute_endpoint")
    ours = logging.getLogger("globus_compute_apptainer")
    if theirs.handlers and not ours.handlers:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.level)


def error_result(task_id: uuid.UUID, error: ContainerError) -> bytes:
    """A packed ``Result`` that makes the client's future raise ``error``'s text.

    The SDK shows ``data``; ``error_details.code`` is for programs. No ``details``:
    the SDK takes them for the worker's environment and warns of a mismatch.
    """
    now = TaskTransition(
        timestamp=time.time_ns(),
        actor=ActorName.INTERCHANGE,
        state=TaskState.EXEC_END,
    )
    result = Result(
        task_id=task_id,
        data=_encodable(error.render()),
        error_details=ResultErrorDetails(
            code=error.code, user_message=_encodable(error.message)
        ),
        task_statuses=[now],
    )
    packed: bytes = messagepack.pack(result)
    return packed


def value_result(
    task_id: uuid.UUID, value: object, serializers: list[str] | None
) -> bytes:
    """A packed ``Result`` that makes the client's future return ``value``.

    :param serializers: import paths of the strategies that the client reads; the
        SDK's own choice if there are none
    """
    now = TaskTransition(
        timestamp=time.time_ns(),
        actor=ActorName.INTERCHANGE,
        state=TaskState.EXEC_END,
    )
    data = ComputeSerializer.serialize_from_list(value, serializers or ())
    result = Result(task_id=task_id, data=data, task_statuses=[now])
    packed: bytes = messagepack.pack(result)
    return packed


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which JSON can carry in, cannot be packed."""
    return text.encode("utf-8", "replace").decode("utf-8")


def await_stopping_publishers(seconds: float) -> None:
    """Let result publishers that are stopping stop, up to ``seconds`` each.

    The interchange stops its publisher before it shuts the engine down, but does not
    wait for it. While it is stopping, it accepts results that it never sends. Once it
    has stopped it refuses them, and the interchange keeps them in its result store,
    to be sent after the next start.
    """
    for thread in threading.enumerate():
        if isinstance(thread, ResultPublisher) and thread._stop_event.is_set():
            thread.join(seconds)


def error_code(packed: Any, codes: Mapping[bytes, str]) -> str:
    """Which of ``codes`` a packed ``Result`` names as its error; empty for none.

    Results can be large, so they are unpacked only where one of them is in there.

    :param codes: by how they are encoded
    """
    if not isinstance(packed, bytes) or not any(code in packed for code in codes):
        return ""
    try:
        result = messagepack.unpack(packed)
    except Exception:  # noqa: BLE001 - whatever it is, it is passed on as it is
        return ""
    details = getattr(result, "error_details", None)
    code = "" if details is None else str(details.code)
    return code if code in codes.values() else ""


def terms(
    engine: GlobusComputeEngine,
    order: ContainerOrder,
    result_serializers: Sequence[str] | None,
) -> Terms:
    """What ``GlobusComputeEngineBase.submit`` tells its worker function."""
    allowed = engine.serde.allowed_deserializer_types
    endpoint_id = engine.endpoint_id
    return Terms(
        order,
        run_dir=str(engine.working_dir),
        endpoint_id=None if endpoint_id is None else str(endpoint_id),
        run_in_sandbox=engine.run_in_sandbox,
        task_deserializers=tuple(f"{k.__module__}.{k.__name__}" for k in allowed),
        result_serializers=tuple(result_serializers or ()),
    )


def bind(engine: GlobusComputeEngine, task_f: GCFuture) -> None:
    """Have the engine know where a task runs, until it ends."""
    task_f.bind("executor_task_id", engine._update_executor_task_id)
    task_f.add_done_callback(engine._clear_task)


def attempt(
    engine: GlobusComputeEngine,
    task_f: GCFuture,
    packed_task: bytes,
    resource_specification: dict[str, Any],
    told: str,
) -> Future[Any]:
    """Hand a task to Parsl, as ``GlobusComputeEngineBase._invoke_submission`` does,
    with our worker function.

    :param told: :meth:`.Terms.to_wire`
    """
    engine._task_id_map.pop(task_f.executor_task_id, None)
    args = (str(task_f.gc_task_id), told)
    done: Any = engine._submit(resource_specification, runner.run, packed_task, args)
    task_f.executor_task_id = done.executor_task_id
    handed: Future[Any] = done
    return handed


def failure(
    engine: GlobusComputeEngine,
    task_id: uuid.UUID,
    began: int,
    errors: Sequence[Exception],
) -> bytes:
    """The packed ``Result`` of a task that Parsl could not run.

    :param began: when the last attempt did, in nanoseconds
    :param errors: one for each attempt
    """
    begin = TaskTransition(
        timestamp=began,
        state=TaskState.WAITING_FOR_LAUNCH,
        actor=ActorName.INTERCHANGE,
    )
    result = engine._handle_task_exception(
        task_id=task_id, execution_begin=begin, exception_history=list(errors)
    )
    packed: bytes = messagepack.pack(result)
    return packed
