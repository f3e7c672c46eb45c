"""Runs tasks through a real engine in this process, without the cloud.

Used by ``gc-apptainer try`` and the demo. What a task meets here is what it meets on
an endpoint: :class:`.engine.ApptainerEngine`, Parsl's interchange, one
worker process on this machine, and the SDK's serialisation on both ends. Missing
are the web service, AMQP and whatever an endpoint's configuration says beyond its
``containers:`` block.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect
from parsl.providers import LocalProvider

from globus_compute_apptainer import events
from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.images import outcome

LOOPBACK = "127.0.0.1"
_SOON = 0.5  # Parsl starts workers at its second look for work; its default is 5 s


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    :param value: what the function returned; None if it did not
    :param error: what the client's future would raise; empty on success
    :param code: the error's code; empty on success
    :param container: the result's ``details["container"]``; empty where it has none
    :param seconds: from submission to result, a build included
    """

    value: Any = None
    error: str = ""
    code: str = ""
    container: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class LocalEngine:
    """A started engine; made by :func:`local_engine`.

    :param clock: seconds, monotonic
    """

    def __init__(
        self, engine: ApptainerEngine, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._clock = engine, clock
        # The function's source is sent, so that any Python can run it.
        self._serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], container: object
    ) -> Outcome:
        """Run one task to its end.

        :param container: what a client would attach under ``container``
        """
        task_id, started = uuid.uuid4(), self._clock()
        future = upstream.GCFuture(task_id)
        message = self._pack(task_id, function, args)
        self._engine.submit(future, message, {"container": container})
        return self._outcome(outcome(future), self._clock() - started)

    def settle(self) -> None:
        """Block until the images that became ready are complete: tasks that run after
        that run in containers that stay."""
        images = self._engine._images
        if images is not None:
            images.settle()

    def _pack(
        self, task_id: uuid.UUID, function: Callable[..., Any], args: Sequence[Any]
    ) -> bytes:
        parts: tuple[Any, ...] = (function, tuple(args), {})
        buffers = [self._serializer.serialize(part) for part in parts]
        task = Task(task_id=task_id, task_buffer=self._serializer.pack_buffers(buffers))
        packed: bytes = messagepack.pack(task)
        return packed

    def _outcome(self, packed: bytes, seconds: float) -> Outcome:
        result = messagepack.unpack(packed)
        if not isinstance(result, Result):
            raise TypeError(f"a result was expected, not {type(result).__name__}")
        container = (result.details or {}).get("container", {})
        if result.error_details is not None:
            code = result.error_details.code
            return Outcome(None, result.data, code, container, seconds)
        try:
            value = self._serializer.deserialize(result.data)
        except Exception as error:  # noqa: BLE001 - anything can come out of a pickle
            text = (
                "the function returned something that this Python cannot read:"
                f" {type(error).__name__}: {error}\n"
                "  hint: return plain data (numbers, texts, lists, dictionaries)"
            )
            return Outcome(None, text, "result-unreadable", container, seconds)
        return Outcome(value, "", "", container, seconds)


@contextmanager
def local_engine(
    containers: Mapping[str, Any], sink: events.Sink = events.ignore
) -> Iterator[LocalEngine]:
    """An engine with one worker on this machine, gone when the block ends.

    :param containers: the ``containers:`` block of its configuration
    :param sink: receives the builds' events
    """
    with (
        tempfile.TemporaryDirectory(
            prefix="gc-apptainer-", ignore_cleanup_errors=True
        ) as run_dir,
        _own_programs_first(),
    ):
        engine = ApptainerEngine(
            containers=dict(containers),
            label="local",
            address=LOOPBACK,
            max_workers_per_node=1,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
            job_status_kwargs={"strategy_period": _SOON},
        )
        engine.event_sink = sink
        # Ctrl-C goes to the whole process group. Without its interchange Parsl waits
        # for ever when it is shut down, so that has a session of its own.
        launch = engine.executor.interchange_launch_cmd
        engine.executor.interchange_launch_cmd = ["setsid", *launch]
        try:
            engine.start(endpoint_id=uuid.uuid4(), run_dir=run_dir)
            yield LocalEngine(engine)
        finally:
            engine.shutdown()


@contextmanager
def _own_programs_first() -> Iterator[None]:
    """Parsl finds ``globus-compute-endpoint`` through PATH: this environment's."""
    before = os.environ.get("PATH")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before or ''}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before
