"""One command in a new container: how it is started, and how it ended.

Runs in worker processes, for images that have no Python. The container has the binds,
options and layers that one for Python tasks has; its environment is the same, too, but
set from the start, since there is nobody inside to change it. The command runs in
``/bin/bash``, as the SDK has it, or in ``/bin/sh`` where the image has no bash.

Guaranteed: when :func:`run` has returned or raised, no process of the container is
left; if the worker dies first, :mod:`.shellguard` sees to it. Not guaranteed: the end
of what is stuck in the kernel, or has moved to a mount namespace and a session of its
own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import shellguard
from globus_compute_apptainer.worker.container import (
    describe_end,
    no_folder,
    not_started,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from globus_compute_apptainer.worker.launch import Launch

LOOK_SECONDS: Final = 0.25
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 20

PROLOGUE: Final = """
cd "$1" 2>/dev/null || { echo no-folder >&0; exit 78; }
[ -d "${TMPDIR:-/}" ] || unset TMPDIR
shell=/bin/bash
[ -x "$shell" ] || shell=/bin/sh
echo "$$" >&0
read -r answer
[ "$answer" = go ] || exit 78
exec "$shell" -c "$2" </dev/null 2>&9 9>&-
"""
"""What ``/bin/sh`` does first; its arguments are the folder to run in and the command.
See :mod:`.shellguard` for who answers."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    :param returncode: as :mod:`subprocess` has it, negative for a signal
    :param timed_out: it was ended, ``seconds`` after its start
    """

    returncode: int
    timed_out: bool = False


def run(
    launch: Launch,
    *,
    stdout: IO[str],
    stderr: IO[str],
    start_timeout: float,
    seconds: float | None,
) -> Ended:
    """Run the command to its end, which is that of its background processes, too.

    :param launch: of :func:`.launch.launch_shell`
    :param start_timeout: seconds that the container may take to start
    :param seconds: how long the command may run; None: for ever
    :raises TaskError: the container did not start (``container-start-failed``,
        ``overlay-unavailable``, ``no-shell``), has no such folder
        (``no-working-directory``), or nobody is left to take the answer
        (``worker-orphaned``)
    """
    request = {
        "argv": list(launch.argv),
        "env": dict(launch.env),
        "stdout": stdout.fileno(),
        "stderr": stderr.fileno(),
        "start_timeout": start_timeout,
        "walltime": seconds,
    }
    with tempfile.TemporaryFile() as said:
        answer = _answer(request, said, launch.folder)
        said.seek(max(said.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        lines = said.read().decode("utf-8", "replace").splitlines()
    tail = tuple(line for line in lines if not line.startswith("INFO:    "))
    return _ended(answer, tail[-TAIL_LINES:], start_timeout)


def _answer(
    request: Mapping[str, Any], said: IO[bytes], folder: str
) -> Mapping[str, Any]:
    """What the guard says in the end.

    :raises TaskError: the worker's manager has died (``worker-orphaned``)
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(shellguard.__file__).resolve())],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        pass_fds=(request["stdout"], request["stderr"]),
        start_new_session=True,
    )
    told = b""
    try:
        _write(guard.stdin, request)
        told = _read(guard.stdout)
    finally:
        told += _closed(guard)
        facts: dict[str, Any] = {}
        for line in told.splitlines():
            facts |= json.loads(line)
        if "state" not in facts and "leader" in facts:  # somebody killed the guard
            shellguard.kill_all(lambda: shellguard.session(facts["leader"]))
    return facts


def _write(inlet: IO[bytes] | None, request: Mapping[str, Any]) -> None:
    assert inlet is not None, "a pipe was asked for"  # noqa: S101
    with contextlib.suppress(BrokenPipeError):
        inlet.write(json.dumps(request).encode("ascii") + b"\n")
        inlet.flush()


def _read(outlet: IO[bytes] | None) -> bytes:
    """All that the guard tells; it looks now and then whether anyone wants it."""
    assert outlet is not None, "a pipe was asked for"  # noqa: S101
    manager, told = os.getppid(), b""
    poll = select.poll()
    poll.register(outlet, select.POLLIN)
    while True:
        while not poll.poll(LOOK_SECONDS * 1000):
            if os.getppid() != manager:
                raise TaskError("the worker's manager is gone", code="worker-orphaned")
        piece = os.read(outlet.fileno(), 65536)
        if not piece:
            return told
        told += piece


def _closed(guard: subprocess.Popen[bytes]) -> bytes:
    """End the guard, and what it guards; returns what it had yet to tell."""
    told, _ = guard.communicate()
    return told


def _ended(
    facts: Mapping[str, Any], tail: tuple[str, ...], start_timeout: float
) -> Ended:
    state, returncode = facts.get("state"), facts.get("returncode", 0)
    if state in ("ended", "walltime"):
        return Ended(returncode, timed_out=state == "walltime")
    if state == "no-folder":
        raise no_folder("it is not there")
    if state is None:
        raise TaskError("the command's guard ended while it ran", tail=tail)
    message = "the container did not start"
    if state == "late":
        raise not_started(f"{message} within {start_timeout:g} s", tail=tail)
    raise not_started(message, ended=describe_end(returncode), tail=tail)
