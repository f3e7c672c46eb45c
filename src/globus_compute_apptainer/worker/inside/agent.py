"""Running tasks: deserialize, call, serialize, as the stock engine does.

Runs in the child, which answers every task of its worker with one result.
"""

from __future__ import annotations

import functools
import os
import threading
import traceback
import types
from typing import Any, Callable, Dict, Optional, Tuple

from .activity import Activity
from .frames import DONE, Frame, Reader, packed, write_frame
from .streams import Streams
from .variables import Variables

UTF8 = ("utf-8", "surrogatepass")  # JSON may hold half of a surrogate pair

Failure = Tuple[str, Tuple[str, str]]  # text; code and message for the user
Outcome = Tuple[str, Optional[Tuple[str, str]]]  # that, or the result and None


class AppTimeout(Exception):  # noqa: N818
    __module__ = "parsl.app.errors"  # raised in slow tasks, by the name users know


def raise_in(thread: int, kind: Optional[type]) -> None:
    """Have a thread raise an exception soon, or no longer."""
    import ctypes

    exception = ctypes.py_object(kind) if kind else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)


def disarm() -> None:
    """After this, no timeout of an earlier task can strike."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.function is raise_in:
            thread.cancel()
            thread.join()
    raise_in(threading.get_ident(), None)


def timeout(f: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """``f``, interrupted by :class:`AppTimeout` after so many seconds."""

    @functools.wraps(f)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        timer = threading.Timer(seconds, raise_in, (threading.get_ident(), AppTimeout))
        timer.start()
        try:
            return f(*args, **kwargs)
        finally:
            timer.cancel()

    return wrapper


@functools.lru_cache(maxsize=None)
def sdk() -> Tuple[Any, Any]:
    """What is needed of the SDK: the error of large results, and the serializer."""
    from globus_compute_sdk.errors import MaxResultSizeExceeded
    from globus_compute_sdk.serialize import ComputeSerializer

    return MaxResultSizeExceeded, ComputeSerializer


def execute_task(task: Any, header: Dict[str, Any]) -> Outcome:
    """Run a task as its header says; without a ``__name__`` it fails, as in stock."""
    # These statements, and timeout's, are stock: users see them in tracebacks.
    MaxResultSizeExceeded, ComputeSerializer = sdk()  # noqa: N806
    try:
        serde = ComputeSerializer(allowed_deserializer_types=header["allowed"])
        f, f_a, f_k = serde.unpack_and_deserialize(task.task_buffer)
        gc_task_timeout = max(0.0, float(os.environ.get("GC_TASK_TIMEOUT", 0.0)))
        if gc_task_timeout > 0.0:
            f = timeout(f, gc_task_timeout)
        _ = [
            f.__name__,
        ]
        raw_result = f(*f_a, **f_k)
        wanted = header["result_serializers"] or ()
        result = serde.serialize_from_list(raw_result, wanted)
        res_len = len(result)
        if res_len > header["limit"]:
            raise MaxResultSizeExceeded(res_len, header["limit"])
        return result, None
    except Exception as exc:
        return describe(exc, (MaxResultSizeExceeded,))


def describe(exc: BaseException, internal: Tuple[type, ...] = ()) -> Failure:
    """Text, code and message of an error, worded as the stock engine does.

    The text leaves out the two outermost calls, which are not the user's; of an
    ``internal`` error it is the ``repr``. The worker uses it, too.
    """
    if isinstance(exc, internal):
        return repr(exc), (type(exc).__name__, "remote error: %s" % exc)
    tb = exc.__traceback__
    for _ in range(2):
        tb = tb.tb_next if tb is not None and tb.tb_next is not None else tb
    return "".join(traceback.format_exception(type(exc), exc, tb)), (
        "RemoteExecutionError",
        "An error occurred during the execution of this task",
    )


class TaskLoop:
    """The child's work: run tasks, and keep their traces from one another."""

    def __init__(self, streams: Streams, activity: Activity) -> None:
        self._streams, self._activity = streams, activity
        self._variables = Variables()
        self._lasting: Dict[str, Any] = {}

    def serve(self) -> None:
        """Answer tasks until the worker closes its end."""
        reader = Reader(functools.partial(os.read, self._streams.tasks))
        while frame := reader.frame():
            self._activity.busy()
            head, body = self._answer(frame.header, frame.body)
            self._activity.idle()
            write_frame(self._streams.answers, Frame(frame.number, head, body))

    def _answer(self, header: Dict[str, Any], body: bytes) -> Tuple[bytes, bytes]:
        self._streams.restore()
        self._lasting = lasting = header.get("lasting", self._lasting)
        self._variables.lend(lasting["env"], header["task"])
        try:
            os.chdir(header.get("cwd", lasting["cwd"]))
        except OSError as error:
            return packed({"kind": "no-folder", "reason": str(error)}), b""
        task = types.SimpleNamespace(task_buffer=body.decode(*UTF8))
        try:
            data, error_details = execute_task(task, lasting)
            if "GC_TASK_TIMEOUT" in self._variables:
                disarm()
        except AppTimeout as exc:  # came between the function's end and disarm()
            data, error_details = describe(exc)
        finally:
            self._streams.flush()
        failed = error_details and packed({"kind": "result", "error": error_details})
        return failed or DONE, data.encode(*UTF8)
