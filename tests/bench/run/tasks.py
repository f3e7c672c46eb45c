"""The functions that are run, and how they are packed.

They are sent as a client's script sends them: by value, with the SDK's default
strategy.
"""

from __future__ import annotations

import types
import uuid
from collections.abc import Callable
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_sdk.serialize import ComputeSerializer

SERIALIZER = ComputeSerializer()


def nothing() -> None:
    pass


def echo(data):
    return data


def use_pandas(seconds):
    """Keeps its worker for a while, so that others get the other tasks."""
    import os
    import time

    began = time.perf_counter()
    import pandas

    pandas.DataFrame({"a": range(1000)})["a"].sum()
    took = time.perf_counter() - began
    time.sleep(max(seconds - took, 0))
    return os.getpid(), took


def packed(function: Callable[..., Any], *args: Any) -> tuple[uuid.UUID, bytes]:
    code = function.__code__.replace(co_filename="/home/of/client/script.py")
    sent = types.FunctionType(code, {"__name__": "__main__"}, function.__name__)
    parts: tuple[Any, ...] = (sent, args, {})
    buffer = SERIALIZER.pack_buffers([SERIALIZER.serialize(part) for part in parts])
    task_id = uuid.uuid4()
    return task_id, messagepack.pack(Task(task_id=task_id, task_buffer=buffer))


def value(answer: bytes) -> Any:
    result = messagepack.unpack(answer)
    assert isinstance(result, Result)
    if result.is_error:
        raise RuntimeError(f"a task of the benchmark failed: {result.data}")
    return SERIALIZER.deserialize(result.data)
