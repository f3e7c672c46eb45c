"""Running a ``ShellFunction`` in an image that has no Python.

Runs in worker processes. The SDK's :class:`ShellFunction` is a command with settings;
on the stock engine the worker makes it from what was sent, formats the command and has
``/bin/bash`` run it. Here everything but the command itself happens in the worker, too:
files for output, snippets, the result, its size limit.

A worker is outside of any container, so nothing of the user's is run in it: from what
was sent only ``ShellFunction`` and ``MPIFunction`` are made, with plain values as
arguments (:data:`PLAIN`). Anything else ends in the error ``no-python``.

What differs from the stock engine: paths in ``stdout`` and ``stderr`` are the node's;
a command that reaches its walltime, or ``GC_TASK_TIMEOUT``, is ended, and so are the
processes that it leaves behind; ``/bin/sh`` stands in for a missing ``/bin/bash``.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import importlib
import os
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.worker import buffers, shellcommand
from globus_compute_apptainer.worker.inert import Reader
from globus_compute_apptainer.worker.inside import agent
from globus_compute_apptainer.worker.launch import launch_shell, no_python

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from globus_compute_apptainer.worker.inert import Name
    from globus_compute_apptainer.worker.order import ContainerOrder

_NO_SANDBOX: Final = (
    "WARNING: Task sandboxing will not work due to "
    "endpoint misconfiguration. Please enable sandboxing "
    "on the remote endpoint. "
)
TIMEOUT_RETURNCODE: Final = 124  # of the command `timeout`, as the SDK has it

PLAIN: Final = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list range set "
    "slice str tuple",
    "collections": "OrderedDict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath PurePath PurePosixPath",
    "uuid": "SafeUUID UUID",
}
"""Types that arguments may be of, beside those that a pickle has by itself."""


@dataclass(frozen=True)
class Place:
    """Where a command runs.

    :param run_dir: the folder that is bound into the container
    :param folder: the task's own, in or at ``run_dir``
    :param env: the task's variables
    :param timeout: seconds that the task may take (``GC_TASK_TIMEOUT``); None: for ever
    """

    order: ContainerOrder
    run_dir: str
    folder: str
    env: Mapping[str, str]
    timeout: float | None


def execute(
    task_buffer: str, header: Mapping[str, Any], order: ContainerOrder, run_dir: str
) -> agent.Outcome:
    """Run a task as its header says, and as :func:`.agent.execute_task` would.

    :raises TaskError: it is no ``ShellFunction`` (``no-python``), or its container is
        at fault, see :func:`.shellcommand.run`
    :raises HostError: there is no usable Apptainer on this machine
    """
    from globus_compute_sdk.errors import MaxResultSizeExceeded  # noqa: PLC0415
    from globus_compute_sdk.serialize import ComputeSerializer  # noqa: PLC0415

    harmless, lasting = _harmless(task_buffer, order), header["lasting"]
    try:
        serde = ComputeSerializer(allowed_deserializer_types=lasting["allowed"])
        f, f_a, f_k = serde.unpack_and_deserialize(harmless)
        if type(f) not in _functions().values():  # the class itself, say
            raise no_python(order, "a Python function")
        env = {**lasting["env"], **header["task"]}
        seconds = max(0.0, float(env.get("GC_TASK_TIMEOUT", 0.0)))
        cwd = header.get("cwd", lasting["cwd"])
        place = Place(order, run_dir, cwd, env, seconds or None)
        f.execute_cmd_line = functools.partial(_execute_command, f, place)
        raw_result = f(*f_a, **f_k)
        wanted = lasting["result_serializers"] or ()
        result = serde.serialize_from_list(raw_result, wanted)
        if len(result) > lasting["limit"]:
            raise MaxResultSizeExceeded(len(result), lasting["limit"])
        return result, None
    except ContainerError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, the user is told
        return agent.describe(error, (MaxResultSizeExceeded,))


def _harmless(task_buffer: str, order: ContainerOrder) -> str:
    """The part of what was sent that runs nothing of the user's when it is read.

    :raises TaskError: something of it is missing then (``no-python``)
    """
    parts = buffers.split(task_buffer)
    if not parts:  # for the SDK to complain of
        return task_buffer
    function = buffers.filtered(parts[0], functools.partial(_is_harmless, _functions()))
    if not function:
        raise no_python(order, "a Python function")
    known = functools.partial(_is_harmless, _plain())
    arguments = [buffers.filtered(part, known) for part in parts[1:]]
    if not all(arguments):
        raise no_python(order, "an argument that is neither text nor other plain data")
    return buffers.joined([function, *arguments])


def _is_harmless(known: Mapping[Name, Callable[..., Any]], part: str) -> bool:
    """Whether a pickle names nothing but what is known, or a text is JSON."""
    if not part.startswith((buffers.DILL_CODE, buffers.DILL_DATA)):
        return part.startswith(buffers.JSON)
    try:
        reader = Reader(binascii.a2b_base64(part[buffers.IDENTIFIER :]), known)
    except ValueError:
        return True  # it is no pickle: for the SDK to complain of
    with contextlib.suppress(Exception):  # the SDK will meet it, too, and tell
        reader.load()
    return not reader.unknown


@functools.cache
def _functions() -> Mapping[Name, Callable[..., Any]]:
    from globus_compute_sdk import MPIFunction, ShellFunction  # noqa: PLC0415

    kinds = (ShellFunction, MPIFunction)
    return {(kind.__module__, kind.__name__): kind for kind in kinds}


@functools.cache
def _plain() -> Mapping[Name, Callable[..., Any]]:
    found = {
        (module, name): getattr(importlib.import_module(module), name)
        for module, names in PLAIN.items()
        for name in names.split()
    }
    paths = {("pathlib._local", n): t for (m, n), t in found.items() if m == "pathlib"}
    return {**found, **paths}  # as Python 3.13 names them


def _execute_command(function: Any, place: Place, cmd: str) -> Any:
    """What :meth:`ShellFunction.execute_cmd_line` does, with the command inside."""
    stdout = function.open_std_fd(_output(function.stdout, place, ".stdout"))
    stderr = function.open_std_fd(_output(function.stderr, place, ".stderr"))
    if "GC_TASK_SANDBOX_DIR" not in place.env:
        print(_NO_SANDBOX, file=stderr)
    try:
        ended = _command(function, place, cmd, stdout, stderr)
    finally:
        snippets = function.get_and_close_streams(stdout, stderr)
    failed = ended.timed_out or ended.returncode != 0
    kind = "TimeoutExpired" if ended.timed_out else "CalledProcessError"
    result = {
        "cmd": cmd,
        "stdout": snippets[0],
        "stderr": snippets[1],
        "returncode": TIMEOUT_RETURNCODE if ended.timed_out else ended.returncode,
        "exception_name": f"subprocess.{kind}" if failed else None,
    }
    if function.return_dict:
        return result
    from globus_compute_sdk.sdk.shell_function import ShellResult  # noqa: PLC0415

    return ShellResult(**result)


def _command(
    function: Any, place: Place, cmd: str, stdout: IO[str], stderr: IO[str]
) -> shellcommand.Ended:
    """Run it for as long as it may.

    :raises AppTimeout: that is less than its own walltime
    """
    script = (shellcommand.PROLOGUE, place.folder, cmd)
    limits = [s for s in (function.walltime, place.timeout) if s is not None]
    ended = shellcommand.run(
        launch_shell(place.order, place.run_dir, script, place.env),
        stdout=stdout,
        stderr=stderr,
        start_timeout=place.order.start_timeout,
        seconds=min(limits, default=None),
    )
    if ended.timed_out and min(limits) != function.walltime:
        raise agent.AppTimeout
    return ended


def _output(wanted: str | None, place: Place, suffix: str) -> str:
    """Path of a file for output: as asked for, or one of a new name."""
    if wanted:
        return os.path.join(place.folder, wanted)  # noqa: PTH118  # any text may come
    prefix = place.env["GC_TASK_UUID"] + "."
    with tempfile.NamedTemporaryFile(
        dir=place.folder, prefix=prefix, suffix=suffix
    ) as file:
        return file.name
