"""A worker pool as HTEX has it: a manager, and workers that are its children.

``python workers.py PAIRS…`` is the manager; with ``--worker IN OUT`` it is a worker,
which runs what comes through one pipe and answers through the other, until its
manager is gone. Tests use :class:`Pool`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZE = struct.Struct("!Q")
HERE = Path(__file__).resolve()
SECONDS = 180.0


def write(fd: int, thing: Any) -> None:
    data = pickle.dumps(thing)
    rest = memoryview(SIZE.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read(fd: int, give_up: Any) -> Any:
    poll = select.poll()
    poll.register(fd, select.POLLIN)

    def exactly(size: int) -> bytes:
        found = b""
        while len(found) < size:
            while not poll.poll(50):
                if give_up():
                    raise EOFError
            part = os.read(fd, size - len(found))
            if not part:
                raise EOFError
            found += part
        return found

    return pickle.loads(exactly(SIZE.unpack(exactly(SIZE.size))[0]))


class Worker:
    """The test's side of a worker."""

    def __init__(self) -> None:
        self.its_input, self._input = os.pipe()
        self._output, self.its_output = os.pipe()
        self.pid = 0

    def send(self, **arguments: Any) -> None:
        """Have it call :func:`runner.run` with these."""
        write(self._input, arguments)

    def answer(self) -> bytes:
        deadline = time.monotonic() + SECONDS
        found = read(self._output, lambda: time.monotonic() > deadline)
        assert isinstance(found, bytes), found
        return found

    def close(self) -> None:
        for fd in (self._input, self._output):
            os.close(fd)


class Pool:
    """A manager and its workers, in a process group of their own."""

    def __init__(self, count: int = 2) -> None:
        self.workers = [Worker() for _ in range(count)]
        theirs = [fd for w in self.workers for fd in (w.its_input, w.its_output)]
        self.manager = subprocess.Popen(
            [sys.executable, str(HERE), *map(str, theirs)],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for fd in theirs:
            os.close(fd)
        for worker in self.workers:
            worker.pid = int(worker.answer())

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self.manager.pid, signal.SIGKILL)
        self.manager.wait(60)
        for worker in self.workers:
            worker.close()


def manage(ends: list[str]) -> None:
    pairs = [ends[n : n + 2] for n in range(0, len(ends), 2)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE), "--worker", *pair],
            pass_fds=[int(fd) for fd in pair],
        )
        for pair in pairs
    ]
    for fd in ends:
        os.close(int(fd))
    for worker in workers:
        worker.wait()
    signal.pause()


def work(inlet: int, outlet: int) -> None:
    from globus_compute_apptainer.worker.runner import run

    manager = os.getppid()
    write(outlet, str(os.getpid()).encode())
    while True:
        arguments = read(inlet, lambda: os.getppid() != manager)
        write(outlet, run(**arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[3] / "src"))
    try:
        if sys.argv[1] == "--worker":
            work(int(sys.argv[2]), int(sys.argv[3]))
        else:
            manage(sys.argv[1:])
    except EOFError:
        sys.exit(0)
