"""The guard sees its child's end, whenever that was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import inside

QUICK = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from inside import messages
from inside.guard import Guard
assign, zygote = messages.pair()
leash, worker = messages.pair()
tasks, _ = socket.socketpair()
child = os.fork()
if not child:
    os._exit(3)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # before the guard is one
messages.send(zygote, {"kind": "serve"}, [leash.fileno(), tasks.fileno()])
Guard(child, assign).run()
"""


def test_a_child_that_ended_before_the_guard_looked():
    """Where the machine is busy, a task may be over before its guard has begun."""
    folder = str(Path(inside.__file__).parents[1])
    ended = subprocess.run([sys.executable, "-c", QUICK, folder], timeout=120)
    assert ended.returncode == 0


def test_what_the_guard_says(started, asker):
    container = started()

    def end():
        import os

        os._exit(3)

    with pytest.raises(TaskError, match="exit code 3"):
        asker.ask(container, end)
    assert container._end == {"status": 3 << 8, "unread": False}
