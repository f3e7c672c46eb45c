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
from globus_compute_apptainer.worker.launch import Launch


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
    with pytest.raises(NotSentError):
        asker.ask(container, pid)


def test_closing_ends_the_process(started, asker):
    container = started()
    agent_pid = asker.ask(container, pid)
    container.close()
    until(lambda: gone(agent_pid))
    container.close()


def test_program_that_is_not_there(tmp_path):
    with pytest.raises(TaskError, match="/no/such/program") as caught:
        Container(Launch(("/no/such/program",), {}, str(tmp_path)), 10)
    assert caught.value.code == "container-start-failed"


def test_program_that_says_nothing(tmp_path):
    launch = program("import sys; sys.stdin.read(); sys.stdin.read()", tmp_path)
    with pytest.raises(TaskError, match=r"did not start within 0\.3 s"):
        Container(launch, 0.3)


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
def test_known_causes_have_hints(tmp_path, said, hint):
    launch = program(f"import sys; sys.exit({said!r})", tmp_path)
    with pytest.raises(TaskError) as caught:
        Container(launch, 30)
    assert caught.value.tail == (said,)
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


def test_tail_is_bounded_and_leaves_out_remarks(tmp_path):
    source = "import sys; print('INFO:    remark', *range(9999), sep='\\n', "
    source += "file=sys.stderr); sys.exit('end\\nINFO:    remark')"
    with pytest.raises(TaskError) as caught:
        Container(program(source, tmp_path), 30)
    assert caught.value.tail[-1] == "end"
    assert len(caught.value.tail) <= 20
