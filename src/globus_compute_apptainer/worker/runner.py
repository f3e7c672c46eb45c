"""What a worker calls for a task that runs in a container.

Runs in the HTEX worker processes of the endpoint's nodes, in the place of the stock
engine's ``execute_task``, whose contract it keeps: the same checks, messages and error
texts. Unlike that one it changes neither the working directory nor the environment of
the worker: the container's side does (:mod:`.inside.agent`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import platform
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.errors import ContainerError, HostError, TaskError
from globus_compute_apptainer.worker import bytecode, message, shellfunction
from globus_compute_apptainer.worker.container import (
    Answer,
    Container,
    Facts,
    NotSentError,
    no_folder,
)
from globus_compute_apptainer.worker.inside import messages
from globus_compute_apptainer.worker.inside.agent import describe
from globus_compute_apptainer.worker.launch import launch
from globus_compute_apptainer.worker.message import Times
from globus_compute_apptainer.worker.node import Bounds, Node
from globus_compute_apptainer.worker.prepared import Prepared, prepared
from globus_compute_apptainer.worker.stage import staged
from globus_compute_apptainer.worker.warm import WarmPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from globus_compute_apptainer.worker.launch import Launch
    from globus_compute_apptainer.worker.order import ContainerOrder

log = logging.getLogger(__name__)

_pool: Final = WarmPool()
_node: Final = Node()


class Outcome(NamedTuple):
    """What became of a task.

    :param data: the serialized result, or the text of the error
    :param error: code and message for the user
    :param facts: about where it ran
    """

    data: str
    error: tuple[str, str] | None
    facts: Facts


class CouldNotExecuteUserTaskError(Exception):
    """The stock engine's error for what is not a task; users see its name."""


def run(packed_task: bytes, task_id: str, terms: str) -> bytes:
    """Execute a task in a container.

    :param terms: :meth:`.Terms.to_wire` of how to
    :returns: a packed ``Result``, also where the container is at fault
    :raises ValueError: the terms cannot be met, see :func:`.prepared`
    """
    exec_start = time.time_ns()
    known = prepared(terms)
    log.info("%s: Preparing to execute task in %s", task_id, known.order.image)
    header = known.header(task_id)
    outcome = _execute(packed_task, task_id, header, known)
    times = Times(exec_start, time.time_ns())
    log.info("%s: Task processing completed in %d ns", task_id, times.end - times.start)
    if outcome.error is None:
        return known.form(outcome.facts).fill(task_id, outcome.data, times)
    log.error("%s: Task failed: %s", task_id, outcome.data)
    code, user_message = outcome.error
    result = Result(
        task_id=task_id,
        data=outcome.data,
        details=known.details(outcome.facts),
        error_details={"code": code, "user_message": user_message},
        task_statuses=message.transitions(times),
    )
    packed: bytes = messagepack.pack(result)
    return packed


def _execute(
    packed_task: bytes, task_id: str, header: dict[str, Any], known: Prepared
) -> Outcome:
    task_buffer = message.task_buffer(packed_task, task_id)
    if task_buffer is None:
        found = _by_library(packed_task, known)
        if isinstance(found, Outcome):
            return found
        task_buffer = found
    failure: ContainerError
    try:
        return _execute_inside(task_buffer, header, known)
    except TaskError as error:
        order = known.order
        failure = _unusable(order, error) or _with_hint(error, order)
    except ContainerError as error:
        failure = error
    return Outcome(str(failure), (failure.code, failure.message), known.expected)


def _by_library(packed_task: bytes, known: Prepared) -> str | Outcome:
    """What is to be run, or what the library says against it, worded as in stock."""
    try:
        task = messagepack.unpack(packed_task)
        if not isinstance(task, Task):
            msg = f"[{len(packed_task)} bytes] 0x{packed_task[:8].hex()}..."
            raise CouldNotExecuteUserTaskError(
                f"Non Task-type message received: {type(task).__name__} (from: {msg})"
            )
    except Exception as error:  # noqa: BLE001  # whatever it is, the user is told
        text, details = describe(error, (CouldNotExecuteUserTaskError,))
        return Outcome(text, details, known.expected)
    buffer: str = task.task_buffer
    return buffer


def _execute_inside(
    task_buffer: str, header: dict[str, Any], known: Prepared
) -> Outcome:
    """Run the task in a warm container, or in a new one where that has gone."""
    order = known.order
    if order.python is None:
        found = shellfunction.execute(task_buffer, header, order, known.run_dir)
        return Outcome(*found, known.expected)
    task_buffer = bytecode.checked(task_buffer, order.python_version)
    body = task_buffer.encode("utf-8", "surrogatepass")
    try:
        container, (answer, data) = _ask(known, header, body)
    except NotSentError:  # a second one is the task's error
        container, (answer, data) = _ask(known, header, body)
    if answer["kind"] == "no-folder":
        raise no_folder(answer["reason"])
    error = (answer["error"][0], answer["error"][1]) if answer["error"] else None
    return Outcome(data.decode("utf-8", "surrogatepass"), error, container.facts)


def _ask(
    known: Prepared, header: dict[str, Any], body: bytes
) -> tuple[Container, Answer]:
    keep = known.order.warm_per_worker if known.order.isolation == "worker" else 0
    start = functools.partial(_started, known)
    with _pool.lease(known.key, start, keep) as container:
        return container, container.ask(header, body)


def _started(known: Prepared) -> Container:
    prepare = functools.partial(_launch, known)
    container = Container(_node, known.key, prepare, Bounds.of(known.order))
    for name, reason in container.facts.not_preloaded.items():
        log.warning("module %s was not preloaded: %s", name, reason)
    return container


@contextlib.contextmanager
def _launch(known: Prepared) -> Iterator[tuple[Launch, Sequence[int]]]:
    os.makedirs(known.run_dir, exist_ok=True)  # noqa: PTH103
    here, held = staged(known.order)
    try:
        yield launch(here, known.run_dir), held
    finally:
        messages.close(held)


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
