"""Tasks that end their process, and what they leave behind."""

from __future__ import annotations

import os
import signal

import pytest
from globus_compute_sdk.serialize import ComputeSerializer

from globus_compute_apptainer.worker import place, runner

from .tree import alive, descendants, parent, processes, until

pytestmark = pytest.mark.apptainer


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
    elif how == "group":
        os.killpg(0, 9)
    else:
        os.kill(os.getpid(), int(how))


ENDS = {
    "os._exit": "exit code 3",
    "sys.exit": "exit code 4",
    "sys.exit with text": "exit code 1",
    "abort": "signal SIGABRT",
    "9": "signal SIGKILL",
    "group": "signal SIGKILL",
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


def daemons(command):
    import os
    import subprocess

    subprocess.Popen(command)
    subprocess.Popen(command, start_new_session=True)
    subprocess.Popen(["setsid", "-f", *command])
    subprocess.Popen(["unshare", "-Urm", "setsid", "-f", *command])
    return os.getpid()


def strays(command: list[str]) -> set[int]:
    text = " ".join(command) + " "
    return {pid for pid, (_, found) in processes().items() if found == text}


@pytest.mark.parametrize("isolation", ["worker", "task"])
def test_nothing_is_left_when_the_worker_lets_go(inside, isolation):
    command = ["sleep", f"1000.{os.getpid()}"]  # nobody else's
    task = inside.with_order(isolation=isolation).value(daemons, command)
    if isolation == "worker":
        until(lambda: len(strays(command)) == 4, "not all have started")
        runner._pool.close()
    assert not strays(command) and not alive([task])


def test_leftovers_of_another_worker_s_tasks_stay(inside):
    mine, other = inside, inside.with_order(isolation="task")
    command = ["sleep", f"1001.{os.getpid()}"]
    first = mine.value(daemons, command)
    until(lambda: len(strays(command)) == 4, "not all have started")
    second = other.value(pid)
    assert first != second and not alive([second])
    assert len(strays(command)) == 4
    runner._pool.close()
    assert not strays(command)


def test_a_crash_costs_a_child_and_no_container(inside):
    guard = parent(inside.value(pid))
    zygote = parent(guard)
    assert inside.result(end, "9").is_error
    after = parent(inside.value(pid))
    assert after != guard and parent(after) == zygote


@pytest.mark.parametrize("who", ["guard", "zygote", "runtime"])
def test_killed_from_outside(inside, who):
    """As the kernel does it when memory runs out."""
    guard = parent(inside.value(pid))
    zygote = parent(guard)
    victim = {"guard": guard, "zygote": zygote, "runtime": parent(zygote)}[who]
    family = alive([guard, *descendants(guard)])
    if who != "guard":
        family |= alive([victim, *descendants(victim)])
    os.kill(victim, signal.SIGKILL)
    until(lambda: not alive(family), f"{who} leaves processes")
    assert isinstance(inside.value(pid), int)


def survive(n, how):
    import os

    if how == "exit":
        os._exit(n % 256)
    elif how == "kill":
        os.kill(os.getpid(), 9)
    return n * 2


SPARE = 2
"""Guard and child that are forked ahead, which may not have been there at first."""


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_in_a_hundred_crashes_and_each_task_gets_its_own_outcome(inside, count):
    inside.value(pid)
    most = len(descendants(_keeper())) + SPARE
    for n in range(count):
        how = ("kill" if n % 200 else "exit") if n % 100 == 0 else ""
        result = inside.result(survive, n, how)
        if how:
            end = "signal SIGKILL" if how == "kill" else f"exit code {n % 256}"
            assert f"ended by: {end}" in result.data
        else:
            assert ComputeSerializer().deserialize(result.data) == n * 2
    inside.value(pid)
    until(lambda: len(descendants(_keeper())) <= most, "processes have leaked")


def _keeper() -> int:
    folder = place.folder(runner._node._pool())
    (found,) = [p for p, (_, c) in processes().items() if f" {folder} " in c]
    return found


def kill_my_guard():
    import os
    import time

    os.kill(os.getppid(), 9)
    time.sleep(1000)


def test_a_task_that_kills_its_guard_gets_an_error(inside):
    zygote = parent(parent(inside.value(pid)))
    result = inside.result(kill_my_guard)
    assert result.error_details.code == "container-crashed"
    assert parent(parent(inside.value(pid))) == zygote
