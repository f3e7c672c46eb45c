"""From a bare Python to a zygote that serves, and from a fork of it to a child.

Runs in the container.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import platform
import socket
import sys
import traceback
import types
from typing import Any, Dict, List, NoReturn

from . import messages, preload, traits
from .activity import Activity, mapped
from .agent import TaskLoop, execute_task
from .frames import HELLO, Frame, write_frame
from .library import install_library
from .streams import PRIVATE_FD, Streams, standard
from .zygote import Zygote


def import_all(library: str, sdk_version: str) -> None:
    """Import what every task needs."""
    # A task's __main__ is its own, not ours; dill remembers it.
    sys.modules["__main__"] = types.ModuleType("__main__")
    install_library(library, sdk_version)
    importlib.import_module("globus_compute_sdk.serialize")


def serve(sdk_version: str, wanted: str) -> None:
    """Be the zygote until nobody needs it."""
    control = _control()
    failed = preload.load(json.loads(wanted))
    begin = messages.receive(control)
    if begin is None:
        return
    memory = mapped(begin[1][0])
    messages.close(begin[1])
    details = _details(sdk_version)
    gc.freeze()  # pages that no collection touches stay shared
    zygote = Zygote(control, memory, _work, _rehearse)
    messages.send(control, {"kind": "hello", "details": details, "failed": failed})
    zygote.run()


def _rehearse() -> None:
    """Run a task that does nothing, so that children find ready what the first one
    needs. The child that was forked before does this by itself, meanwhile."""
    standard()
    from globus_compute_sdk.serialize import ComputeSerializer

    serde = ComputeSerializer()
    # As clients send it: code, not the name of something to import.
    nothing = types.FunctionType((lambda: None).__code__, {"__name__": "__main__"})
    call: Any = (nothing, (), {})
    parts = [serde.serialize(part) for part in call]
    task = types.SimpleNamespace(task_buffer=serde.pack_buffers(parts))
    execute_task(task, {"allowed": None, "result_serializers": None, "limit": 1 << 20})
    gc.freeze()


def _control() -> socket.socket:
    """The connection to the keeper, out of the way of standard input."""
    control = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def _details(sdk_version: str) -> Dict[str, str]:
    """What every result says of where it was made."""
    import dill

    return {
        "os": _platform(),
        "dill_version": dill.__version__,
        "python_version": platform.python_version(),
        "globus_compute_sdk_version": sdk_version,
    }


def _platform() -> str:
    """``platform.platform()``, which would start a program to learn the processor's
    name, and then not use it."""
    facts: Any = platform.uname()
    with contextlib.suppress(AttributeError):
        facts.__dict__.setdefault("processor", "")
    found = platform.platform()
    with contextlib.suppress(AttributeError):
        facts.__dict__.pop("processor", None)
    return found


def _work(given: List[int], wanted: Dict[str, Any], activity: Activity) -> NoReturn:
    """Be a child, until the worker lets go or a task ends the process."""
    streams = Streams(*given)
    code: Any = 1
    try:
        traits.take(wanted)
        os.register_at_fork(after_in_child=streams.forget)
        faulthandler.enable()
        activity.idle()
        write_frame(streams.answers, Frame(0, HELLO))
        TaskLoop(streams, activity).serve()
        code = 0
    except BaseException as end:
        traceback.print_exc()
        if isinstance(end, SystemExit):
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        streams.flush()
        os._exit(code & 0xFF)
