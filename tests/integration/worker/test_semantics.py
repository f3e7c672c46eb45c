"""What a task meets in its process is what it meets on the stock engine.

The same functions run in a container and in the stock ``execute_task``, on two
processes that were made alike: what the one returns, the other must.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import resource
import signal
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.apptainer


def limits():
    import os
    import resource

    mask = os.umask(0)
    os.umask(mask)
    names = ("NOFILE", "CORE", "STACK", "CPU", "FSIZE", "AS")
    found = [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names]
    return mask, sorted(os.sched_getaffinity(0)), found


def accelerators():
    import os

    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    ranks = ("PARSL_WORKER_RANK", "SLURM_JOB_ID", "TMPDIR", "GC_ANYTHING")
    return [os.environ.get(name) for name in names + ranks]


def starts_processes():
    import subprocess
    import sys

    said = subprocess.run(
        [sys.executable, "-c", "print(input())"],
        input="through a program",
        capture_output=True,
        text=True,
    )
    return said.stdout, said.returncode


def forks():
    import os

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"from the child")
        os._exit(5)
    said = os.read(reader, 100)
    return said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reads():
    import sys

    return sys.stdin.read()


def writes():
    import os
    import sys

    sys.stdout.write("to stdout\n")
    sys.stderr.write("to stderr\n")
    return os.write(1, b"to 1\n"), os.write(2, b"to 2\n"), sys.stdout.writable()


def changes_directory():
    import os

    os.chdir("/")
    return os.getcwd()


def where():
    import os

    return os.getcwd()


def dispositions():
    import signal

    ours = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGCHLD", "SIGUSR1", "SIGALRM")
    found = [signal.getsignal(getattr(signal, name)) for name in ours]
    return [int(one) if isinstance(one, int) else one.__name__ for one in found]


def handles_a_signal():
    import os
    import signal

    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    signal.setitimer(signal.ITIMER_REAL, 30)
    return seen, signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def waits_for_a_child():
    import subprocess

    with subprocess.Popen(["sleep", "1000"]) as process:
        process.kill()
        return process.wait()


def interrupted():
    raise KeyboardInterrupt


def in_the_main_thread():
    import threading

    here = threading.current_thread() is threading.main_thread()
    return here, threading.active_count() < 5


def random_numbers_differ():
    import random

    return 0 <= random.random() < 1


FUNCTIONS = (
    *(limits, accelerators, starts_processes, forks, reads, writes),
    *(changes_directory, where, handles_a_signal, waits_for_a_child),
    *(in_the_main_thread, random_numbers_differ),
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_as_on_the_stock_engine(inside, stock, packed, value_of, function):
    message = packed(function)
    assert value_of(inside.message(*message)) == value_of(stock(*message))
    again = packed(where)
    assert value_of(inside.message(*again)) == value_of(stock(*again))


def change(affinity, mask, nofile):
    import os
    import resource

    os.sched_setaffinity(0, affinity)
    os.umask(mask)
    soft, hard = nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    core = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, core))


@contextlib.contextmanager
def like_a_worker(stock_process, affinity, mask, nofile) -> Iterator[None]:
    """This process and the stock one, as a worker is that HTEX has set up."""
    before = (sorted(os.sched_getaffinity(0)), os.umask(0), _soft("NOFILE"))
    core = resource.getrlimit(resource.RLIMIT_CORE)
    own = inspect.getsource(change)

    def both(*arguments) -> None:
        change(*arguments)
        stock_process.apply(exec, (f"{own}\nchange{arguments!r}", {}))

    try:
        both(affinity, mask, nofile)
        yield
    finally:
        both(*before)
        for process in (_Here, stock_process):
            process.apply(resource.setrlimit, (resource.RLIMIT_CORE, core))


class _Here:
    @staticmethod
    def apply(function, arguments):
        return function(*arguments)


def _soft(name: str) -> int:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]


def test_affinity_umask_and_limits_are_the_worker_s(
    inside, stock, packed, value_of, stock_process
):
    """Of each worker its own, though one container serves them all."""
    one_each = inside.with_order(isolation="task")
    cpus = sorted(os.sched_getaffinity(0))
    seen = []
    for cpu, mask, files in ((cpus[0], 0o027, 700), (cpus[-1], 0o077, 800)):
        with like_a_worker(stock_process, [cpu], mask, files):
            message = packed(limits)
            ours = value_of(one_each.message(*message))
            assert ours == value_of(stock(*message))
            assert ours[:2] == (mask, [cpu]) and ours[2][0][0] == files
            seen.append(ours)
    assert seen[0] != seen[1]


def test_accelerators_are_the_worker_s(inside, stock, packed, value_of, monkeypatch):
    """As HTEX's ``available_accelerators`` sets them, from worker to worker."""
    for rank in "01":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", rank)
        monkeypatch.setenv("ROCR_VISIBLE_DEVICES", rank)
        monkeypatch.setenv("PARSL_WORKER_RANK", rank)
        message = packed(accelerators)
        ours = value_of(inside.message(*message))
        assert ours == value_of(stock(*message))
        assert ours[:2] == [rank, rank]


def test_signals_have_the_meaning_that_python_gives_them(inside):
    """The stock worker's differ by its pool: here they are a fresh Python's."""
    found = inside.with_order(isolation="task").value(dispositions)
    assert found[0] == "default_int_handler"
    default, ignored = int(signal.SIG_DFL), int(signal.SIG_IGN)
    assert found[1:] == [default, default, ignored, default, default, default]


def test_tasks_of_their_own_process_share_nothing_but_the_container(inside):
    def remember():
        import os
        import sys

        known = hasattr(sys, "remembered")
        sys.remembered = True
        return known, os.getpid()

    one_each = inside.with_order(isolation="task")
    found = [one_each.value(remember) for _ in range(4)]
    assert [known for known, _ in found] == [False] * 4
    assert len({pid for _, pid in found}) == 4
    shared = [inside.value(remember) for _ in range(2)]
    assert shared[0] == (False, shared[1][1]) and shared[1][0] is True


def test_modules_are_preloaded_in_the_image(inside):
    def which():
        import sys

        return [name in sys.modules for name in ("sqlite3", "xml.dom.minidom")]

    eager = inside.with_order(preload=("sqlite3", "no_such_module"))
    result = eager.result(which)
    failed = result.details["container"]["not_preloaded"]
    assert failed.keys() == {"no_such_module"}
    assert "No module named" in failed["no_such_module"]
    assert eager.value(which)[0]
    assert not inside.with_order(isolation="task").value(which)[0]


def test_a_copy_on_the_node_is_what_runs(inside, tmp_path, python_sif):
    import hashlib

    digest = "sha256:" + hashlib.sha256(python_sif.read_bytes()).hexdigest()
    local = inside.with_order(
        env=(("A_CONTAINER", "of its own"),),
        image_digest=digest,
        stage_to=str(tmp_path),
        stage_size=1 << 40,
    )
    assert local.value(where) == str(inside.run_dir.resolve())
    (copy,) = tmp_path.glob("*/*.sif")
    assert local.value(image) == str(copy)


def image():
    import os

    return os.environ["APPTAINER_CONTAINER"]
