"""What a worker calls for a task that runs in a container.

Runs in the HTEX worker processes of the endpoint's nodes, in the place of the stock
engine's ``execute_task``, whose contract it keeps: the same arguments, checks,
messages and error texts. Unlike that one it changes neither the working directory nor
the environment of the worker: the container's side does (:mod:`.inside.agent`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import time
from typing import TYPE_CHECKING, Any, Final

import dill
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.errors import ContainerError, HostError, TaskError
from globus_compute_apptainer.worker import bytecode, message, shellfunction
from globus_compute_apptainer.worker.container import (
    Container,
    NotSentError,
    no_folder,
)
from globus_compute_apptainer.worker.environment import (
    task_environment,
    worker_environment,
)
from globus_compute_apptainer.worker.inside import messages
from globus_compute_apptainer.worker.inside.agent import describe
from globus_compute_apptainer.worker.launch import launch
from globus_compute_apptainer.worker.message import Times
from globus_compute_apptainer.worker.node import Bounds, Node
from globus_compute_apptainer.worker.order import ContainerOrder
from globus_compute_apptainer.worker.stage import staged
from globus_compute_apptainer.worker.warm import WarmPool

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Mapping, Sequence

    from globus_compute_apptainer.worker.launch import Launch

log = logging.getLogger(__name__)

RESULT_SIZE_LIMIT: Final = 10 * 1024 * 1024
SMALLEST_LIMIT: Final = 128

_pool: Final = WarmPool()
_node: Final = Node()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task.

    :param data: the serialized result, or the text of the error
    :param error: code and message for the user
    :param details: facts about where it ran
    :param not_preloaded: modules that its container was to import, and did not: why
    """

    data: str
    error: tuple[str, str] | None
    details: Mapping[str, Any]
    not_preloaded: Mapping[str, str] = dataclasses.field(default_factory=dict)


class CouldNotExecuteUserTaskError(Exception):
    """The stock engine's error for what is not a task; users see its name."""


def run(
    packed_task: bytes,
    task_id: uuid.UUID,
    endpoint_id: uuid.UUID | None = None,
    *,
    run_dir: str | os.PathLike[str],
    result_size_limit: int = RESULT_SIZE_LIMIT,
    run_in_sandbox: bool = False,
    task_deserializers: list[str] | None = None,
    result_serializers: list[str] | None = None,
    container: str,
) -> bytes:
    """Execute a task in a container; arguments as of the stock ``execute_task``.

    :param container: :meth:`.ContainerOrder.to_wire` of the container to run it in
    :returns: a packed ``Result``, also where the container is at fault
    """
    exec_start = time.time_ns()
    _check_deserializers(tuple(task_deserializers or ()))
    order = _order(container)
    log.info("%s: Preparing to execute task in %s", task_id, order.image)
    if result_size_limit < SMALLEST_LIMIT:
        raise ValueError(
            f"Invalid result limit; must be at least 128 bytes ({result_size_limit=})"
        )
    base_dir, task_dir = _make_folders(run_dir, str(task_id) if run_in_sandbox else "")
    header = {
        "lasting": {
            "cwd": task_dir,
            "env": worker_environment(os.environ, dict(order.env)),
            "limit": result_size_limit,
            "allowed": task_deserializers,
            "result_serializers": result_serializers,
        },
        "task": task_environment(str(task_id), task_dir if run_in_sandbox else None),
    }
    outcome = _execute(packed_task, header, order, base_dir)
    return _pack(task_id, endpoint_id, order, outcome, exec_start)


def _execute(
    packed_task: bytes, header: dict[str, Any], order: ContainerOrder, run_dir: str
) -> Outcome:
    try:
        task = messagepack.unpack(packed_task)
        if not isinstance(task, Task):
            msg = f"[{len(packed_task)} bytes] 0x{packed_task[:8].hex()}..."
            raise CouldNotExecuteUserTaskError(
                f"Non Task-type message received: {type(task).__name__} (from: {msg})"
            )
    except Exception as error:  # noqa: BLE001  # whatever it is, the user is told
        text, details = describe(error, (CouldNotExecuteUserTaskError,))
        return Outcome(text, details, _expected_details(order))
    try:
        return _execute_inside(task.task_buffer, header, order, run_dir)
    except TaskError as error:
        return _failure(_unusable(order, error) or _with_hint(error, order), order)
    except ContainerError as error:
        return _failure(error, order)


def _execute_inside(
    task_buffer: str, header: dict[str, Any], order: ContainerOrder, run_dir: str
) -> Outcome:
    """Run the task in a warm container, or in a new one where that has gone."""
    if order.python is None:
        text, failed = shellfunction.execute(task_buffer, header, order, run_dir)
        return Outcome(text, failed, _expected_details(order))
    task_buffer = bytecode.checked(task_buffer, order.python_version)

    @contextlib.contextmanager
    def prepare() -> Iterator[tuple[Launch, Sequence[int]]]:
        os.makedirs(run_dir, exist_ok=True)  # noqa: PTH103
        here, held = staged(order)
        try:
            yield launch(here, run_dir), held
        finally:
            messages.close(held)

    def start() -> Container:
        container = Container(_node, key, prepare, Bounds.of(order))
        for name, reason in container.not_preloaded.items():
            log.warning("module %s was not preloaded: %s", name, reason)
        return container

    key = f"{order.run_key} {run_dir}"
    keep = order.warm_per_worker if order.isolation == "worker" else 0
    body = task_buffer.encode("utf-8", "surrogatepass")
    try:
        with _pool.lease(key, start, keep) as container:
            answer, data = container.ask(header, body)
    except NotSentError:  # a second one is the task's error
        with _pool.lease(key, start, keep) as container:
            answer, data = container.ask(header, body)
    if answer["kind"] == "no-folder":
        raise no_folder(answer["reason"])
    error = (answer["error"][0], answer["error"][1]) if answer["error"] else None
    text = data.decode("utf-8", "surrogatepass")
    return Outcome(text, error, container.details, container.not_preloaded)


def _failure(error: ContainerError, order: ContainerOrder) -> Outcome:
    return Outcome(str(error), (error.code, error.message), _expected_details(order))


def _unusable(order: ContainerOrder, error: TaskError) -> HostError | None:
    """What is wrong with this machine's Apptainer, if a container did not start."""
    if error.code == "container-start-failed":
        try:
            Apptainer.find(order.apptainer)
        except HostError as cause:
            return cause
    return None


def _with_hint(error: TaskError, order: ContainerOrder) -> TaskError:
    """Name what often makes a Python crash: code compiled by another version."""
    ours = ".".join(platform.python_version_tuple()[:2])
    theirs = ".".join((order.python_version or ours).split(".")[:2])
    if not error.ended.startswith("signal") or error.hint or theirs == ours:
        return error
    hint = (
        f"the image has Python {theirs}, the endpoint {ours}: functions serialized as "
        "bytecode crash on a Python other than that which made them; send the source "
        "(`ComputeSerializer(strategy_code=AllCodeStrategies())`) or ask for an image "
        "with your Python (`python` in the container spec)"
    )
    return dataclasses.replace(error, hint=hint)


@functools.lru_cache(maxsize=64)
def _order(wire: str) -> ContainerOrder:
    return ContainerOrder.from_wire(wire)


def _make_folders(run_dir: str | os.PathLike[str], sandbox: str) -> tuple[str, str]:
    """The folder for tasks in general, and the one for this task, which exists."""
    base_dir = _base_dir(os.fspath(run_dir))
    task_dir = f"{base_dir}/{sandbox}" if sandbox else base_dir
    if sandbox:
        os.makedirs(task_dir, exist_ok=True)  # noqa: PTH103  # a third of the time
    return base_dir, task_dir


@functools.lru_cache(maxsize=8)
def _base_dir(run_dir: str) -> str:
    """The folder for tasks in general. Made once, and for every new container: those
    that run would not see another one in its place."""
    base_dir = pathlib.Path(run_dir)
    if not base_dir.is_absolute():
        raise ValueError(f"Absolute path required.  Received: {run_dir=}")
    base_dir = base_dir.resolve()
    base_dir.mkdir(parents=True, exist_ok=True)
    return str(base_dir)


@functools.cache
def _check_deserializers(allowed: tuple[str, ...]) -> None:
    """Refuse an unknown one before anything runs, with the SDK's own error."""
    if allowed:
        from globus_compute_sdk.serialize import ComputeSerializer  # noqa: PLC0415

        ComputeSerializer(allowed_deserializer_types=allowed)


def _expected_details(order: ContainerOrder) -> dict[str, str]:
    """What the container would have said of itself, as far as that is known.

    Without versions the SDK would blame a difference of versions.
    """
    return {
        "os": platform.platform(),
        "dill_version": dill.__version__,
        "python_version": order.python_version or platform.python_version(),
        "globus_compute_sdk_version": importlib.metadata.version("globus-compute-sdk"),
    }


def _pack(
    task_id: uuid.UUID,
    endpoint_id: uuid.UUID | None,
    order: ContainerOrder,
    outcome: Outcome,
    exec_start: int,
) -> bytes:
    details = {**outcome.details, "endpoint_id": endpoint_id}
    container = order.summary()
    if outcome.not_preloaded:
        container["not_preloaded"] = dict(outcome.not_preloaded)
    times = Times(exec_start, time.time_ns())
    log.info("%s: Task processing completed in %d ns", task_id, times.end - times.start)
    if outcome.error is None:
        form = message.form(tuple(details.items()), json.dumps(container))
        return form.fill(task_id, outcome.data, times)
    log.error("%s: Task failed: %s", task_id, outcome.data)
    code, user_message = outcome.error
    result = Result(
        task_id=task_id,
        data=outcome.data,
        details={**details, "container": container},
        error_details={"code": code, "user_message": user_message},
        task_statuses=message.transitions(times),
    )
    packed: bytes = messagepack.pack(result)
    return packed
