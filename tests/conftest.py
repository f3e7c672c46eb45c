"""What tests of every kind share."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable
from typing import Any

import pytest

Pack = Callable[..., tuple[uuid.UUID, bytes]]

# Shells start background jobs with this ignored, which programs inherit; and some tests
# are of what programs do on Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def pack_task() -> Pack:
    """Pack a call as the SDK does: ``pack_task(function, *args, **kwargs)``.

    By source, since functions of test modules cannot be imported on a worker.
    """
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Task
    from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect
    from globus_compute_sdk.serialize.concretes import DEFAULT_STRATEGY_CODE

    def pack(
        function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[uuid.UUID, bytes]:
        by_source = hasattr(function, "__code__")
        code = PureSourceTextInspect() if by_source else DEFAULT_STRATEGY_CODE
        serializer = ComputeSerializer(strategy_code=code)
        parts = [serializer.serialize(part) for part in (function, args, kwargs)]
        task_id = uuid.uuid4()
        buffer = serializer.pack_buffers(parts)
        return task_id, messagepack.pack(Task(task_id=task_id, task_buffer=buffer))

    return pack


@pytest.fixture
def unpack_result() -> Callable[[bytes], Any]:
    """The ``Result`` message in what an engine's future holds."""
    from globus_compute_common import messagepack

    return messagepack.unpack
