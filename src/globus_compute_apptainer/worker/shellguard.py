"""Runs one command in a container, and sees to it that nothing of it stays.

A process of its own on the worker's machine, between the worker and Apptainer; started
by :mod:`.shellcommand` as ``python -I -S shellguard.py`` (hence: the standard library
only, nothing of ours). It reads one line from the worker, a JSON object with ``argv``,
``env``, ``stdout`` and ``stderr`` (descriptors that it inherited, for the command),
``start_timeout`` and ``walltime`` (seconds). It writes one with the ``leader``, the
number of Apptainer's process, and one when all is over, with its ``returncode`` and a
``state``: ``ended``, ``walltime``, ``no-folder``, ``not-started`` or ``late``. What
Apptainer says goes to the guard's own standard error.

If the worker goes away meanwhile, its end of the pipe does, and the container with it.

The container's first process, a shell, says its number over its standard input, which
is a socket, and waits for the answer before it becomes the command. So its mount
namespace is known, and held, before anything of the user's runs: whatever runs in that
namespace later, in whatever session, is the container's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

STANDARD_ERROR = 9  # of the command, until its shell takes it: shells know one digit
ABOVE = 20
GRACE_SECONDS = 5.0
LOOKS, PAUSE_SECONDS = 100, 0.01
LONGEST_SECONDS = 2_000_000  # that a poll can wait: longer is for ever
NO_FOLDER = b"no-folder"


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    stdout = fcntl.fcntl(request["stdout"], fcntl.F_DUPFD_CLOEXEC, ABOVE)
    stderr = fcntl.fcntl(request["stderr"], fcntl.F_DUPFD_CLOEXEC, ABOVE)
    os.dup2(stderr, STANDARD_ERROR)
    ours, theirs = socket.socketpair()
    try:
        leader = subprocess.Popen(
            request["argv"],
            env=request["env"],
            stdin=theirs.fileno(),
            stdout=stdout,
            pass_fds=(STANDARD_ERROR,),
            start_new_session=True,
        )
    except OSError as error:
        os.write(2, str(error).encode())
        tell(state="not-started", returncode=1)
        return
    theirs.close()
    tell(leader=leader.pid)
    run = Run(leader, ours)
    try:
        state = run.watch(request["start_timeout"], request["walltime"])
    finally:
        run.end()
    tell(state=state, returncode=leader.returncode)


def tell(**facts: object) -> None:
    with contextlib.suppress(OSError):  # the worker may have gone
        os.write(1, json.dumps(facts).encode("ascii") + b"\n")


class Run:
    """A command on its way through a container."""

    def __init__(self, leader: subprocess.Popen[bytes], shell: socket.socket) -> None:
        self._leader, self._shell = leader, shell
        self._namespace, self._held = "", -1
        self._ended = [os.pidfd_open(leader.pid)]

    def watch(self, start_timeout: float, walltime: float | None) -> str:
        """Wait for the end of the command, or of the worker's patience."""
        ready = self._poll(start_timeout, self._shell.fileno())
        if self._shell.fileno() not in ready:
            return "not-started" if ready else "late"
        said = self._shell.recv(64).strip()
        if not said.isdigit():
            return NO_FOLDER.decode() if said == NO_FOLDER else "not-started"
        self._hold(int(said))
        self._shell.sendall(b"go\n")
        return "ended" if self._poll(walltime) else "walltime"

    def end(self) -> None:
        """End what is left, and reap the leader."""
        self._shell.close()  # a shell that still waits for its answer gives up
        kill_all(lambda: members(self._namespace))
        # Apptainer waits for its helpers, who serve the image in the namespace that is
        # held here: without them it ends as the command did.
        if self._held >= 0:
            kill_all(lambda: session(self._leader.pid) - {self._leader.pid})
            self._await_leader(GRACE_SECONDS)
        kill_all(lambda: session(self._leader.pid))
        if self._held >= 0:
            os.close(self._held)
        self._leader.wait()

    def _hold(self, pid: int) -> None:
        """Hold the namespace of the shell, which is still there: it waits for us.

        With a namespace of process numbers its own number says nothing here; then
        Apptainer's end is the end of all.
        """
        if pid not in session(self._leader.pid):
            return
        held = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        name = f"mnt:[{os.fstat(held).st_ino}]"
        if name == os.readlink("/proc/self/ns/mnt"):
            os.close(held)  # not in a container: the neighbours are not ours
            return
        self._namespace, self._held = name, held
        self._ended.append(os.pidfd_open(pid))

    def _await_leader(self, seconds: float) -> None:
        """Without reaping it, so that its number stays its own."""
        poll = select.poll()
        poll.register(self._ended[0], select.POLLIN)
        poll.poll(seconds * 1000)

    def _poll(self, seconds: float | None, *wanted: int) -> dict[int, int]:
        """What happens first in so many seconds: the end of the command or of the
        worker, or something to read from what is ``wanted``."""
        poll = select.poll()
        poll.register(sys.stdin.fileno(), 0)  # hang-up alone
        for descriptor in (*self._ended, *wanted):
            poll.register(descriptor, select.POLLIN)
        if seconds is None or seconds > LONGEST_SECONDS:
            return dict(poll.poll())
        return dict(poll.poll(seconds * 1000))


def kill_all(find: Callable[[], set[int]]) -> None:
    """Kill what is found; gives up on what is stuck."""
    for _ in range(LOOKS):  # processes may be born while we look
        found = find()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):  # gone, or not ours
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def members(namespace: str) -> set[int]:
    """The processes in a mount namespace, in whatever session; no name, none."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc") if namespace else ()):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/mnt") == namespace:
                found.add(int(pid))
    return found


def session(leader: int) -> set[int]:
    """The living processes of a session."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
            state, _, _, of = stat.read().rpartition(b")")[2].split()[:4]
            if state not in (b"Z", b"X") and int(of) == leader:
                found.add(int(pid))
    return found


if __name__ == "__main__":
    main()
