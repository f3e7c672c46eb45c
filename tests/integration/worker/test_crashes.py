"""Tasks that end their process, and workers that die: nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.apptainer

DEADLINE = 30.0


def until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)  # between looks, not instead of one


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process that is not a zombie."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text("latin-1").rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ")
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), command.decode("latin-1"))
    return found


def descendants(ancestor: int) -> dict[int, str]:
    everything = processes()
    found: dict[int, str] = {}
    family = {ancestor}
    while True:
        new = {p: c for p, (pp, c) in everything.items() if pp in family} | {}
        if new.keys() <= found.keys():
            return found
        found |= new
        family |= new.keys()


def survivors(former: dict[int, str]) -> dict[int, str]:
    """Which of the processes live, except where a number was given to another."""
    now = processes()
    return {p: c for p, c in former.items() if p in now and now[p][1] == c}


def pid():
    import os

    return os.getpid()


def end(how):
    import os
    import sys

    print("last words", file=sys.stderr, flush=True)
    if how == "os._exit":
        os._exit(3)
    elif how == "sys.exit":
        sys.exit(4)
    elif how == "sys.exit with text":
        sys.exit("cannot go on")
    elif how == "abort":
        os.abort()
    else:
        os.kill(os.getpid(), int(how))


ENDS = {
    "os._exit": "exit code 3",
    "sys.exit": "exit code 4",
    "sys.exit with text": "exit code 1",
    "abort": "signal SIGABRT",
    "9": "signal SIGKILL",
    "11": "signal SIGSEGV",
    "15": "signal SIGTERM",
}


@pytest.mark.parametrize("how", ENDS)
def test_end_of_the_process_is_the_error_of_the_task(inside, how):
    before = inside.value(pid)
    result = inside.result(end, how)
    assert result.error_details.code == "container-crashed"
    assert f"ended by: {ENDS[how]}" in result.data
    assert "last words" in result.data
    assert "hint" not in result.data
    assert inside.value(pid) != before


def test_leftover_that_holds_the_pipes_does_not_delay_the_error(inside):
    def leave_child():
        import os

        if os.fork() == 0:
            import ctypes  # a C-level fork keeps all descriptors

            libc = ctypes.CDLL(None)
            libc.fork()
            os.setsid()
            while True:
                libc.pause()
        os._exit(5)

    result = inside.result(leave_child)
    assert "exit code 5" in result.data


def test_nothing_is_left_after_closing(inside):
    from globus_compute_apptainer.worker import runner

    def daemons(command):
        import subprocess

        subprocess.Popen(command)
        subprocess.Popen(command, start_new_session=True)
        subprocess.Popen(["setsid", "-f", *command])
        subprocess.Popen(["unshare", "-Urm", "setsid", "-f", *command])

    command = ["sleep", f"1000.{os.getpid()}"]  # nobody else's
    inside.value(daemons, command)

    def strays() -> dict[int, str]:
        text = " ".join(command) + " "
        return {p: c for p, (_, c) in processes().items() if c == text}

    until(lambda: len(strays()) == 4, "not all have started")
    family = descendants(os.getpid())
    apptainer = {p: c for p, c in family.items() if "Apptainer runtime" in c}
    assert apptainer and any("squashfuse" in c for c in family.values())
    runner._pool.close()
    assert not survivors(apptainer) and not strays()
    assert not [c for c in descendants(os.getpid()).values() if "squashfuse" in c]


def test_runtime_killed_from_outside(inside):
    """As the kernel does it when memory runs out."""
    from globus_compute_apptainer.worker import runner

    runner._pool.close()
    inside.value(pid)
    family = descendants(os.getpid())
    (runtime,) = [p for p, c in family.items() if "Apptainer runtime" in c]
    helpers = descendants(runtime)
    assert len(helpers) >= 3  # guard, child, squashfuse
    os.kill(runtime, signal.SIGKILL)
    until(lambda: not survivors({runtime: family[runtime]}), "runtime lives")
    inside.value(pid)
    assert not survivors(helpers)


WORKER = """
import sys, uuid, pickle
sys.path[:0] = {path!r}
from globus_compute_apptainer.worker.runner import run
packed, task_id, run_dir, wire = pickle.load(sys.stdin.buffer)
run(packed, task_id, run_dir=run_dir, container=wire)
"""


MANAGER = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


def spin(fifo):
    import subprocess

    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(fifo, "w") as started:
        started.write("x")
    while True:
        pass


def hold_the_interpreter(fifo):
    import re

    with open(fifo, "w") as started:
        started.write("x")
    re.match(r"(a+)+b", "a" * 200)  # never returns, never lets another thread run


def ignore_signals(fifo):
    import signal
    import time

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    with open(fifo, "w") as started:
        started.write("x")
    while True:
        time.sleep(1000)


@pytest.mark.parametrize("who", [WORKER, MANAGER])
@pytest.mark.parametrize("function", [spin, hold_the_interpreter, ignore_signals])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_or_its_manager_dies_while_a_task_runs(
    inside, packed, tmp_path, function, number, who
):
    inside.run_dir.mkdir(exist_ok=True, parents=True)
    fifo = inside.run_dir / f"fifo-{tmp_path.name}"
    os.mkfifo(fifo)
    source = str(Path(__file__).resolve().parents[3] / "src")
    program = WORKER.format(path=[source])
    if who is MANAGER:
        program = MANAGER.format(program)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE
    ) as worker:
        try:
            message = (*packed(function, str(fifo)), inside.run_dir)
            pickle.dump((*message, inside.order.to_wire()), worker.stdin)
            worker.stdin.close()
            fifo.read_text()
            family = descendants(worker.pid)
            commands = " ".join(family.values())
            assert "Apptainer runtime" in commands and "squashfuse" in commands
        finally:
            worker.send_signal(number)
            worker.wait(DEADLINE)
    until(lambda: not survivors(family), f"left: {survivors(family)}")
