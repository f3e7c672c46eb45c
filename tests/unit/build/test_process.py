"""Running programs that talk, hang, fork and die; all with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build import process
from globus_compute_apptainer.build.process import MAX_LINE_BYTES, LineSplitter, run

ENV = {"PATH": os.environ["PATH"]}
LONG = 60.0


def shell(script: str, **options) -> tuple[process.Completed, list[str]]:
    lines: list[str] = []
    options = {"env": ENV, "timeout": LONG, "on_line": lines.append, **options}
    return run(["/bin/sh", "-c", script], **options), lines


def is_gone(pid: int) -> bool:
    """Dead, or a zombie that somebody else has to reap."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    yield


def test_both_outputs_arrive_in_order_and_the_status_is_told():
    ended, lines = shell("echo one; echo two >&2; echo three; exit 7")
    assert lines == ["one", "two", "three"]
    assert (ended.returncode, ended.ok) == (7, False)


def test_success_is_ok_and_takes_time():
    ended, lines = shell("exit 0")
    assert ended.ok
    assert lines == []
    assert 0 < ended.seconds < LONG


def test_lines_come_while_the_program_runs(tmp_path: Path):
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "ready":
            fifo.write_text("go on\n")  # blocks until the program reads

    ended, _ = shell(f"echo ready; read answer <{fifo}; echo $answer", on_line=on_line)
    assert ended.ok
    assert seen == ["ready", "go on"]


def test_much_output_does_not_block_and_nothing_is_lost():
    program = (
        "import sys\nfor i in range(200000): print(i)\nprint('e', file=sys.stderr)"
    )
    lines: list[str] = []
    ended = run(
        [sys.executable, "-u", "-c", program],
        env=ENV,
        timeout=LONG,
        on_line=lines.append,
    )
    assert ended.ok
    assert lines == [*map(str, range(200000)), "e"]


def test_input_is_empty():
    assert shell("cat; echo end")[1] == ["end"]


def test_environment_and_directory_are_what_was_given(tmp_path: Path):
    _, lines = shell("echo $A; pwd; env | grep -c .", env={"A": "x"}, cwd=tmp_path)
    assert lines[:2] == ["x", str(tmp_path)]


def test_a_program_that_cannot_start_is_an_oserror():
    with pytest.raises(OSError):
        run(["/nonexistent"], env=ENV, timeout=LONG, on_line=print)


def test_timeout_kills_the_whole_group_even_if_it_ignores_sigterm(tmp_path: Path):
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 1000 & echo $$ $! >{pids}; echo up; wait; sleep 1000"
    ended, lines = shell(script, timeout=1.0)
    assert ended.timed_out
    assert not ended.ok
    assert lines == ["up"]
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: is_gone(int(pid)))


def test_sigterm_comes_first_and_last_words_are_heard():
    ended, lines = shell(
        "trap 'echo bye; exit 3' TERM; echo up; sleep 1000 & wait", timeout=1.0
    )
    assert lines == ["up", "bye"]
    assert (ended.returncode, ended.timed_out) == (3, True)


def test_cancel_ends_it():
    cancel = threading.Event()
    ended, _ = shell(
        "echo up; sleep 1000", cancel=cancel, on_line=lambda line: cancel.set()
    )
    assert ended.cancelled
    assert not ended.timed_out
    assert ended.returncode == -signal.SIGTERM


def test_cancelled_before_it_began_does_not_run_long():
    cancel = threading.Event()
    cancel.set()
    assert shell("sleep 1000", cancel=cancel)[0].cancelled


def test_a_child_that_keeps_the_output_open_does_not_hold_up():
    ended, lines = shell("sleep 1000 & echo $!")
    assert ended.ok
    assert ended.seconds < LONG / 2
    wait_for(lambda: is_gone(int(lines[0])))


def test_a_child_of_its_own_session_that_writes_on_does_not_hold_up(tmp_path: Path):
    pid = tmp_path / "pid"
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(pid)!r} + '.new', {str(pid)!r})\n"
        "    while True: os.write(1, b'x' * 100 + b'\\n')\n"
        f"while not os.path.exists({str(pid)!r}): time.sleep(0.01)\n"
    )
    ended = run(
        [sys.executable, "-c", script], env=ENV, timeout=LONG, on_line=lambda line: None
    )
    try:
        assert ended.ok
        assert ended.seconds < LONG / 2
    finally:
        with contextlib.suppress(ProcessLookupError):  # SIGPIPE may be faster
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_listener_that_raises_ends_the_program():
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        shell("echo $$; sleep 1000", on_line=on_line)
    wait_for(lambda: is_gone(int(seen[0])))


def test_closed_output_is_no_end():
    ended, _ = shell("exec >/dev/null 2>&1; sleep 0.3; exit 4")
    assert ended.returncode == 4


def test_no_file_stays_open():
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        shell("echo x; exit 1")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_long_line_is_cut_and_memory_bounded():
    ended, lines = shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after")
    assert ended.ok
    assert lines[-1] == "after"
    assert len(lines) == 2
    assert len(lines[0]) <= MAX_LINE_BYTES + 10


def split(*pieces: bytes) -> list[str]:
    splitter = LineSplitter()
    found = [line for piece in pieces for line in splitter.feed(piece)]
    return [*found, *splitter.flush()]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a", b"b\n", b"c"], ["ab", "c"]),
        ([b"a\r\nb\r", b"\nc\n"], ["a", "b", "c"]),
        ([b"10%\r20%\r", b"30%\n"], ["10%", "20%", "30%"]),
        ([b"\n\n"], ["", ""]),
        ([b"a\r", b"", b"\nb"], ["a", "b"]),
        ([b"\r", b""], []),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
        (["ü".encode()[:1], "ü".encode()[1:], b"\n"], ["ü"]),
        ([b"\x1b[31mred\x1b[0m\x07\n"], ["red"]),
        ([], []),
    ],
)
def test_lines(pieces: list[bytes], lines: list[str]):
    assert split(*pieces) == lines


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_where_the_pieces_break_makes_no_difference(pieces: list[bytes]):
    assert split(*pieces) == split(b"".join(pieces))


def test_what_follows_a_cut_line_is_whole():
    assert [len(line) for line in split(b"x" * 9000, b"x" * 9000, b"\nshort\n")] == [
        MAX_LINE_BYTES + len(" […]"),
        len("short"),
    ]
