"""The one file of this package that runs inside a container: it executes tasks.

A worker starts it as ``apptainer exec … PYTHON -s agent.py LIBRARY SDK-VERSION
OUTSIDE``, on whatever Python the image has (hence: syntax of 3.8, the standard library
only, nothing of ours). LIBRARY is a folder with the host's ``globus_compute_sdk`` and
``dill``; OUTSIDE names the host's mount namespace.

It is two processes. The *guard* is the one that Apptainer started; its child runs the
tasks, one after the other. If the worker goes away, however busy the child is, the
guard ends every process of the container; if the child ends, it ends the same way.

The child says hello once, after ``MAGIC``, since an image may print as it starts; then
it answers every task with one result, in frames over standard input and output. Both
are moved out of the way first: a task reads nothing, and prints to standard error.

The library goes *last* on ``sys.path``, so that the image's own ``dill`` wins. But
``globus_compute_sdk`` is always the library's, since the wire format must be the
endpoint's, and its ``__init__``, which needs all of Globus, never runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
import threading
import time
import traceback
import types
from typing import IO, Any, Callable, Dict, List, Optional, Set, Tuple

OLDEST_PYTHON = (3, 9)  # that the SDK's serializers work with
PRIVATE_FD, CHUNK = 200, 1 << 20  # file descriptors of ours begin there
SIZES = struct.Struct("!IQ")  # of header and body
MAGIC = b"\0\xffgc-apptainer agent\xff\0"  # no text has it
LOOKS, PAUSE_SECONDS, PR_SET_CHILD_SUBREAPER = 100, 0.01, 36
UTF8 = ("utf-8", "surrogatepass")  # JSON may hold half of a surrogate pair

SDK_MODULES = {
    "client": ("Client",),
    "executor": ("Executor",),
    "mpi_function": ("MPIFunction",),
    "shell_function": ("ShellFunction", "ShellResult"),
}

Frame = Tuple[Dict[str, Any], bytes]
Failure = Tuple[str, Tuple[str, str]]  # text; code and message for the user
Outcome = Tuple[str, Optional[Tuple[str, str]]]  # that, or the result and None


def write_frame(fd: int, header: Dict[str, Any], body: bytes = b"") -> None:
    """Write one frame: two sizes, a JSON object, bytes. The worker uses it, too."""
    head = json.dumps(header).encode("ascii")
    first = SIZES.pack(len(head), len(body)) + head
    for part in (first + body,) if len(body) < CHUNK else (first, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def read_frame(read: Callable[[int], bytes]) -> Optional[Frame]:
    """Read one frame; None at the end of the stream. The worker uses it, too.

    :param read: returns up to so many bytes, none at the end of the stream
    :raises EOFError: the stream ended inside a frame
    """
    start = read(SIZES.size)
    if not start:
        return None
    start += _read_exactly(read, SIZES.size - len(start))
    head_size, body_size = SIZES.unpack(start)
    header = json.loads(_read_exactly(read, head_size).decode("ascii"))
    return header, _read_exactly(read, body_size)


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        parts.append(read(min(size, CHUNK)))
        if not parts[-1]:
            raise EOFError("the stream ended inside a frame")
        size -= len(parts[-1])
    return b"".join(parts)


def mount_namespace(pid: str = "self") -> str:
    """Name of the mount namespace of a process; empty if it is not ours to know."""
    try:
        return os.readlink("/proc/%s/ns/mnt" % pid)
    except OSError:
        return ""


def kill_all(find: Callable[[], Set[int]]) -> None:
    """Kill what is found; gives up on what is stuck. The worker uses it, too."""
    for _ in range(LOOKS):  # processes may be born while we look
        found = find()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):  # gone, or not ours
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def members(namespace: str) -> Set[int]:
    """The processes in a mount namespace, in whatever session; no name, none."""
    pids = os.listdir("/proc") if namespace else []
    return {int(p) for p in pids if p.isdigit() and mount_namespace(p) == namespace}


def orphans(child: int) -> Set[int]:
    """This process's living children but one, in whatever namespace; reaps the dead."""
    listed = "/proc/self/task/%d/children" % os.getpid()
    with contextlib.suppress(OSError), open(listed) as file:
        found = set(map(int, file.read().split())) - {child}
        return {pid for pid in found if os.waitpid(pid, os.WNOHANG) == (0, 0)}
    return set()


def guard(child: int, inlet: int, outside: str) -> None:
    """Wait for the child's or the worker's end, and end accordingly."""
    namespace = mount_namespace()
    if namespace == outside:
        namespace = ""  # not in a container: the neighbours are not ours

    def watch() -> None:
        poll = select.poll()
        poll.register(inlet, 0)  # hang-up alone
        poll.poll()
        os.kill(child, signal.SIGKILL)

    with contextlib.suppress(Exception):  # best effort: what tasks leave becomes ours
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=watch, daemon=True).start()
    wait: Any = functools.partial(os.waitid, os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    while (ended := wait().si_pid) != child:  # whose number is still taken
        os.waitpid(ended, 0)
    kill_all(lambda: (members(namespace) | orphans(child)) - {os.getpid(), child})
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
        with contextlib.suppress(OSError):  # SIGKILL's cannot be set
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


class Streams:
    """The worker's two pipes out of the task's reach, and standard streams for it."""

    def __init__(self) -> None:
        def private(fd: int) -> int:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)

        self.inlet, self.outlet, self._errors = private(0), private(1), private(2)
        nothing = os.open(os.devnull, os.O_RDWR)
        self._nothing = private(nothing)
        os.close(nothing)
        self._objects: List[IO[str]] = []
        self.restore()

    def restore(self) -> None:
        """Make standard streams usable again, whatever a task did to them."""
        for target, source in enumerate((self._nothing, self._errors, self._errors)):
            os.dup2(source, target)
        if not self._objects or any(stream.closed for stream in self._objects):
            self._objects = [
                open(fd, "w", lines, errors="replace", closefd=False)  # noqa: SIM115
                for fd, lines in ((1, -1), (2, 1))
            ]
        sys.stdout, sys.stderr = self._objects

    def flush(self) -> None:
        """Send on what a task printed; never fails."""
        for stream in self._objects:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()

    def forget(self) -> None:
        """Close the pipes, in a process that a task forked."""
        for fd in (self.inlet, self.outlet):
            os.closerange(fd, fd + 1)  # never fails


def install_library(library: str, sdk_version: str) -> None:
    """Make the host's serializers importable without the rest of Globus."""

    def lazily(name: str) -> Any:
        for module, names in SDK_MODULES.items():
            if name in names:
                found = importlib.import_module("globus_compute_sdk.sdk." + module)
                return getattr(found, name)
        raise AttributeError("module 'globus_compute_sdk' has no %r" % name)

    for name in ("globus_compute_sdk", "globus_compute_sdk.sdk"):
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [os.path.join(library, *name.split("."))]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    package: Any = sys.modules["globus_compute_sdk"]
    package.sdk = sys.modules["globus_compute_sdk.sdk"]
    package.__version__ = sdk_version
    package.__getattr__ = lazily
    sys.path.append(library)
    if sys.version_info < (3, 11) and not importlib.util.find_spec("exceptiongroup"):
        stub: Any = types.ModuleType("exceptiongroup")
        stub.ExceptionGroup = type("ExceptionGroup", (Exception,), {})
        sys.modules["exceptiongroup"] = stub


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


def execute_task(task: Any, header: Dict[str, Any]) -> Outcome:
    """Run a task as its header says; without a ``__name__`` it fails, as in stock."""
    # These statements, and timeout's, are stock: users see them in tracebacks.
    from globus_compute_sdk.errors import MaxResultSizeExceeded
    from globus_compute_sdk.serialize import ComputeSerializer

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

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._lent: List[str] = []

    def serve(self) -> None:
        """Answer tasks until the worker closes its end."""
        read = functools.partial(os.read, self._streams.inlet)
        while frame := read_frame(read):
            header, body = self._answer(*frame)
            header["id"] = frame[0]["id"]
            write_frame(self._streams.outlet, header, body)

    def _answer(self, header: Dict[str, Any], body: bytes) -> Frame:
        self._streams.restore()
        self._lend(header["env"])
        try:
            os.chdir(header["cwd"])
        except OSError as error:
            return {"kind": "no-folder", "reason": str(error)}, b""
        task = types.SimpleNamespace(task_buffer=body.decode(*UTF8))
        try:
            data, error_details = execute_task(task, header)
            if "GC_TASK_TIMEOUT" in header["env"]:
                disarm()
        except AppTimeout as exc:  # came between the function's end and disarm()
            data, error_details = describe(exc)
        finally:
            self._streams.flush()
        return {"kind": "result", "error": error_details}, data.encode(*UTF8)

    def _lend(self, variables: Dict[str, str]) -> None:
        """Set the variables of this task, and unset those of the one before."""
        for name in self._lent:
            os.environ.pop(name, None)
        if not os.path.isdir(variables.get("TMPDIR", "/")):
            del variables["TMPDIR"]
        os.environ.update(variables)
        self._lent = list(variables)


def hello(sdk_version: str) -> Dict[str, Any]:
    """What the worker is told once, ``details`` being part of every result."""
    import platform

    import dill

    importlib.import_module("globus_compute_sdk.serialize")
    details = {
        "os": platform.platform(),
        "dill_version": dill.__version__,
        "python_version": platform.python_version(),
        "globus_compute_sdk_version": sdk_version,
    }
    return {"details": details, "guard": os.getppid(), "namespace": mount_namespace()}


def work(streams: Streams, library: str, sdk_version: str) -> None:
    """Be the child, until the worker goes away or a task ends the process."""
    import faulthandler

    os.register_at_fork(after_in_child=streams.forget)
    faulthandler.enable()
    # A task's __main__ is its own, not this file.
    sys.modules["globus_compute_apptainer_agent"] = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    install_library(library, sdk_version)
    os.write(streams.outlet, MAGIC)
    write_frame(streams.outlet, hello(sdk_version))
    TaskLoop(streams).serve()


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found = "%d.%d" % sys.version_info[:2]
        sys.exit("the image has Python %s; tasks need 3.9 or newer" % found)
    library, sdk_version, outside = sys.argv[1:]
    del sys.argv[1:], sys.path[0]  # our folder is not the task's to import from
    streams = Streams()
    child = os.fork()
    if child:
        os.close(streams.outlet)
        guard(child, streams.inlet, outside)
    code: Any = 1
    try:
        work(streams, library, sdk_version)
        code = 0
    except BaseException as end:
        traceback.print_exc()
        if isinstance(end, SystemExit):
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        streams.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
