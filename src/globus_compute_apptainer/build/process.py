"""Running a program that may talk much, hang, or leave children behind.

Runs in the endpoint process (builds) and in workers. Knows nothing of Apptainer;
:mod:`.apptainer` is the module that says what to run.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading
    from pathlib import Path

MAX_LINE_BYTES: Final = 8192
"""Longer lines are cut here; a program cannot fill memory with one line."""

GRACE_SECONDS: Final = 3.0
"""Between SIGTERM and SIGKILL, when a program is ended."""

POLL_SECONDS: Final = 0.05
"""The most that a death, a cancellation or a deadline is noticed late."""

_READ_BYTES: Final = 65536
_PIPE_PIECES: Final = 16  # a pipe holds at most 1 MiB
_ESCAPES: Final = re.compile(
    rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[\x00\x07\x08]"
)
_BREAKS: Final = re.compile(rb"\r\n|\n|\r")

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Completed:
    """How a program ended.

    :param returncode: as :mod:`subprocess` has it, negative for a signal
    :param seconds: wall-clock seconds from start to the end of its last process
    """

    returncode: int
    seconds: float
    timed_out: bool = False
    cancelled: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.returncode == 0 and not self.timed_out and not self.cancelled


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    on_line: OnLine,
    cwd: Path | str | None = None,
    cancel: threading.Event | None = None,
    stdin: int = subprocess.DEVNULL,
) -> Completed:
    """Run ``argv`` to its end; ``on_line`` gets its merged output line by line.

    Lines come in this thread, in order, while the program runs: without line end
    and terminal escapes, at most :data:`MAX_LINE_BYTES` long, undecodable bytes
    replaced. A carriage return ends a line too (progress bars).

    The program leads a session of its own. After ``timeout`` seconds, or once
    ``cancel`` is set, its process group gets SIGTERM, :data:`GRACE_SECONDS` later
    SIGKILL. Whatever is left of the group when the leader ends is killed, so that
    a child which keeps the output open cannot hold up the caller; when this
    returns, or raises because ``on_line`` did, the group is gone. Not guaranteed: the
    end of processes that made a session of their own.

    :param stdin: descriptor that the program reads from; it stays the caller's
    :raises OSError: the program cannot be started
    """
    started = time.monotonic()
    process = subprocess.Popen(
        list(argv),
        env=dict(env),
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    watched = _Watched(process, on_line)
    timed_out = cancelled = False
    try:
        while watched.step():
            timed_out = time.monotonic() - started >= timeout
            cancelled = cancel is not None and cancel.is_set()
            if timed_out or cancelled:
                watched.end()
                break
    finally:
        watched.close()
    seconds = time.monotonic() - started
    return Completed(process.returncode, seconds, timed_out, cancelled)


class _Watched:
    """A running group leader and the reading end of its output.

    The leader is not reaped before its group was killed: as long as it is a
    zombie, no other process can get its number.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_line: OnLine) -> None:
        self._process = process
        self._on_line = on_line
        self._lines = LineSplitter()
        assert process.stdout is not None  # noqa: S101 - asked for by `run`
        self._output = process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._open = True
        self._pause = 0.001
        self._reaped = False

    def step(self) -> bool:
        """Wait a little for output and pass it on; False once the leader is dead."""
        if self._open:
            ready = self._selector.select(POLL_SECONDS)
            if ready:
                self._read()
        else:  # it has closed its output, so it is likely about to end
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, POLL_SECONDS)
        return not self._leader_ended()

    def end(self) -> None:
        """Ask the group to end, then make it; output is still passed on."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.step() and time.monotonic() < deadline:
            pass

    def close(self) -> None:
        """Kill what is left of the group, reap the leader, pass on what it wrote."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reaped = True
        try:
            # What is in the pipe now, and no more: a process that escaped from the
            # group may go on writing for ever.
            for _ in range(_PIPE_PIECES):
                if not (self._open and self._read()):
                    break
            for line in self._lines.flush():
                self._on_line(line)
        finally:
            self._selector.close()
            self._output.close()

    def _read(self) -> bool:
        """Pass on one piece of output; False where none is there now."""
        try:
            piece = os.read(self._output.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self._open = False
            self._selector.unregister(self._output)
        for line in self._lines.feed(piece):
            self._on_line(line)
        return self._open

    def _leader_ended(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:
            # Reaped by someone who waits for every child: the number may be another's.
            self._reaped = True
            return True

    def _signal(self, number: int) -> None:
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class LineSplitter:
    """Bytes in, lines out; holds at most :data:`MAX_LINE_BYTES` of an open line."""

    def __init__(self) -> None:
        self._pending = b""
        self._cut = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """The lines that ``piece`` completes."""
        # A trailing CR may be half of a CR LF that the next piece completes.
        data = self._pending + piece
        held = b"\r" if data.endswith(b"\r") else b""
        *complete, rest = _BREAKS.split(data[: len(data) - len(held)])
        for line in complete:
            if not self._cut:
                yield _text(line)
            self._cut = False
        if len(rest) > MAX_LINE_BYTES:
            if not self._cut:
                yield _text(rest)
            self._cut, rest = True, b""
        self._pending = b"" if self._cut and not held else rest + held

    def flush(self) -> Iterator[str]:
        """The last line, where it has no end."""
        pending, self._pending = self._pending.rstrip(b"\r"), b""
        if pending and not self._cut:
            yield _text(pending)


def _text(line: bytes) -> str:
    plain = _ESCAPES.sub(b"", line)
    cut = plain[:MAX_LINE_BYTES].decode("utf-8", errors="replace")
    return cut + " […]" if len(plain) > MAX_LINE_BYTES else cut
