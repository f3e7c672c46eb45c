"""``python -m …keeper FOLDER PID START``, with the listening socket as its input.

A task waits for it, so what it imports is little: no ``pathlib``, no ``dataclasses``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from globus_compute_apptainer.worker.keeper.owner import Owner
from globus_compute_apptainer.worker.keeper.service import Keeper


def main() -> None:
    folder, pid, start = sys.argv[1:]
    listener = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    with contextlib.suppress(OSError):  # not those of the worker that was the first
        os.sched_setaffinity(0, os.sched_getaffinity(int(pid)))
    Keeper(listener, folder, Owner(int(pid), int(start))).run()


if __name__ == "__main__":
    main()
