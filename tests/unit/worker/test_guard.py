"""The guard of one child, in processes of its own."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable

from globus_compute_apptainer.worker.inside import messages
from globus_compute_apptainer.worker.inside.guard import Guard

SECONDS = 60


def ended_early(assign: socket.socket) -> None:
    """A child that has ended before its guard is there to be told."""
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    Guard(child, assign).run()


def in_process(work: Callable[[socket.socket], None], assign: socket.socket) -> int:
    pid = os.fork()
    if not pid:
        try:
            work(assign)
        finally:
            os._exit(1)
    return pid


def test_a_child_that_ends_before_its_guard_looks_is_reported():
    zygote, assign = messages.pair()
    leash, leash_inside = messages.pair()
    tasks, tasks_inside = socket.socketpair()
    given = [leash_inside.fileno(), tasks_inside.fileno()]
    with zygote, assign, leash, leash_inside, tasks, tasks_inside:
        messages.send(zygote, {"kind": "serve"}, given)
        guard = in_process(ended_early, assign)
        try:
            assert select.select([leash], [], [], SECONDS)[0]
            told = messages.receive(leash)
        finally:
            os.kill(guard, signal.SIGKILL)
            os.waitpid(guard, 0)
        assert told is not None
        assert told[0]["status"] == signal.SIGKILL


def test_a_child_that_ends_before_it_is_given_to_anybody_ends_its_guard():
    zygote, assign = messages.pair()
    with zygote, assign:
        guard = in_process(ended_early, assign)
        assign.close()
        try:
            ended = os.pidfd_open(guard)
            assert select.select([ended], [], [], SECONDS)[0]
            os.close(ended)
        finally:
            os.kill(guard, signal.SIGKILL)
            assert os.waitpid(guard, 0)[1] == 0
