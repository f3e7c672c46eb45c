import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker.container import (
    Container,
    NotSentError,
    describe_end,
)
from globus_compute_apptainer.worker.inside import frames
from globus_compute_apptainer.worker.launch import Launch
from globus_compute_apptainer.worker.node import Bounds


def pid():
    import os

    return os.getpid()


def end(code):
    import os
    import sys

    print("last words", file=sys.stderr)
    os._exit(code)


def say(text):
    print(text)


def daemon():
    import os
    import subprocess

    script = "echo $$; exec sleep 1000"
    with subprocess.Popen(
        ["unshare", "-Urm", "setsid", "-f", "sh", "-c", script], stdout=subprocess.PIPE
    ) as process:
        return os.getpid(), int(process.stdout.readline())


def program(source: str, tmp_path) -> Launch:
    return Launch((sys.executable, "-c", source), dict(os.environ), str(tmp_path))


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " in stat.read_text()
    except OSError:
        return True


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (255, "exit code 255"),
        (-11, "signal SIGSEGV"),
        (-9, "signal SIGKILL"),
        (-60, "signal 60"),
    ],
)
def test_ends_in_words(returncode, words):
    assert describe_end(returncode) == words


def test_crash_is_reported_with_last_words(started, asker):
    container = started()
    assert asker.ask(container, say, "of the task before") is None
    with pytest.raises(TaskError) as caught:
        asker.ask(container, end, 3)
    error = caught.value
    assert (error.code, error.ended) == ("container-crashed", "exit code 3")
    assert "last words" in error.tail
    assert not container.alive


def test_dead_container_does_not_take_a_task(started, asker):
    container = started()
    agent_pid = asker.ask(container, pid)
    os.kill(agent_pid, signal.SIGKILL)
    until(lambda: not container.alive)
    with pytest.raises(NotSentError) as caught:
        asker.ask(container, pid)
    error = caught.value
    assert (error.code, error.ended) == ("container-crashed", "signal SIGKILL")


def test_answer_to_another_task_is_not_taken(started, asker):
    container = started()
    frame = frames.Frame(77, frames.packed(asker.header()), asker.body(pid))
    frames.write_frame(container._tasks.fileno(), frame)
    with pytest.raises(TaskError, match="another task"):
        asker.ask(container, pid)
    assert not container.alive


def test_closing_ends_a_daemon_in_a_namespace_of_its_own(started, asker):
    container = started()
    agent_pid, daemon_pid = asker.ask(container, daemon)
    assert not gone(daemon_pid)
    container.close()
    assert gone(agent_pid) and gone(daemon_pid)


def test_closing_ends_the_process(started, asker):
    container = started()
    agent_pid = asker.ask(container, pid)
    container.close()
    until(lambda: gone(agent_pid))
    container.close()


def test_program_that_is_not_there(tmp_path, start):
    with pytest.raises(TaskError, match="/no/such/program") as caught:
        start(Launch(("/no/such/program",), {}, str(tmp_path)))
    assert caught.value.code == "container-start-failed"


def test_program_that_says_nothing(tmp_path, node, given):
    launch = program(
        "import time; print('starting', flush=True); time.sleep(1000)", tmp_path
    )
    with pytest.raises(TaskError, match=r"did not start within 0\.5 s") as caught:
        Container(node, "silent", given(launch), Bounds(start_timeout=0.5))
    assert not caught.value.ended


@pytest.mark.parametrize("noise", ["echo welcome", "yes welcome | head -50000"])
def test_what_an_image_prints_as_it_starts(agent_launch, start, asker, capfd, noise):
    launch = agent_launch()
    argv = ("sh", "-c", f'{noise}; exec "$@"', "sh", *launch.argv)
    container = start(dataclasses.replace(launch, argv=argv))
    assert isinstance(asker.ask(container, pid), int)
    assert "welcome\n" in capfd.readouterr().err


def test_what_is_printed_instead_of_starting_is_in_the_error(tmp_path, start):
    source = "import sys; print('No space left on device'); sys.exit(3)"
    with pytest.raises(TaskError) as caught:
        start(program(source, tmp_path))
    assert caught.value.tail == ("No space left on device",)
    assert caught.value.ended == "exit code 3"
    assert "full" in caught.value.hint


def test_what_did_not_start_leaves_no_process(tmp_path, start):
    note = tmp_path / "daemon"
    source = f"""
import os, subprocess, sys
daemon = subprocess.Popen(["setsid", "sleep", "1000"])
open({str(note)!r}, "w").write(str(daemon.pid))
sys.exit("cannot go on")
"""
    with pytest.raises(TaskError):
        start(program(source, tmp_path))
    until(lambda: gone(int(note.read_text())))


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("FATAL: image format not recognized", "damaged"),
        ("squashfuse_ll exited with status 255", "damaged"),
        ("ERROR: No space left on device", "full"),
        ("Failed to create user namespace: not allowed", "doctor"),
        ("tasks need 3.9 or newer", "newer Python"),
        ("something else", ""),
    ],
)
def test_known_causes_have_hints(tmp_path, start, said, hint):
    with pytest.raises(TaskError) as caught:
        start(program(f"import sys; sys.exit({said!r})", tmp_path))
    assert caught.value.tail == (said,)
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


def test_tail_is_bounded_and_leaves_out_remarks(tmp_path, start):
    source = "import sys; print('INFO:    remark', *range(9999), sep='\\n', "
    source += "file=sys.stderr); sys.exit('end\\nINFO:    remark')"
    with pytest.raises(TaskError) as caught:
        start(program(source, tmp_path))
    assert caught.value.tail[-1] == "end"
    assert len(caught.value.tail) <= 20
