"""A command and its guard, without a container around it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import shellcommand
from globus_compute_apptainer.worker.container import NO_SHELL
from globus_compute_apptainer.worker.launch import LAYER_MISSING, Launch
from globus_compute_apptainer.worker.shellcommand import PROLOGUE, Ended

LONG = 300.0
NAP = f"sleep 1{os.getpid():07d}"  # nobody else's


def asleep() -> bool:
    return subprocess.run(["pgrep", "-f", f"^{NAP}"]).returncode == 0


class Shell:
    """Runs commands as they are run inside, and keeps what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"

    def __call__(self, command: str, **settings: Any) -> Ended:
        return self.start(
            "/bin/sh", "-c", PROLOGUE, "sh", str(self.folder), command, **settings
        )

    def start(self, *argv: str, **settings: Any) -> Ended:
        settings = {"start_timeout": LONG, "seconds": None, "env": {}, **settings}
        launch = Launch(argv, {"PATH": "/usr/bin:/bin", **settings.pop("env")}, "/")
        with self.stdout.open("a+") as out, self.stderr.open("a+") as err:
            return shellcommand.run(launch, stdout=out, stderr=err, **settings)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize(
    ("command", "returncode"),
    [("true", 0), ("exit 78", 78), ("exit 255", 255), ("kill -SEGV $$", -11)],
)
def test_how_it_ends_is_told(shell: Shell, command: str, returncode: int) -> None:
    assert shell(command) == Ended(returncode)


def test_outputs_are_its_own(shell: Shell) -> None:
    shell("pwd; echo err >&2; ls /proc/self/fd; cat; readlink /proc/self/fd/0")
    lines = shell.stdout.read_text().splitlines()
    assert lines == [str(shell.folder), "0", "1", "2", "3", "/dev/null"]
    assert shell.stderr.read_text() == "err\n"


def test_whatever_descriptors_the_worker_has(shell: Shell) -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    try:
        shell("echo out; echo err >&2")
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert (shell.stdout.read_text(), shell.stderr.read_text()) == ("out\n", "err\n")


def test_a_temporary_folder_that_is_not_there_is_not_named(shell: Shell) -> None:
    shell("echo ${TMPDIR-none}", env={"TMPDIR": "/no/such/folder"})
    shell("echo ${TMPDIR-none}", env={"TMPDIR": "/tmp"})
    assert shell.stdout.read_text() == "none\n/tmp\n"


def test_it_may_run_so_long_and_no_longer(shell: Shell) -> None:
    ended = shell(f"{NAP}1 & {NAP}2", seconds=0.5)
    assert ended.timed_out
    assert not asleep()


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
def test_it_may_run_for_years(shell: Shell, seconds: float) -> None:
    assert shell("sleep 0.1", seconds=seconds) == Ended(0)


def test_what_it_leaves_in_its_session_ends_with_it(shell: Shell) -> None:
    assert shell(f"{NAP}3 & {NAP}4 & true") == Ended(0)
    assert not asleep()


def test_a_folder_that_is_not_there(shell: Shell, tmp_path: Path) -> None:
    argv = ("/bin/sh", "-c", PROLOGUE, "sh", str(tmp_path / "none"), "true")
    with pytest.raises(TaskError) as caught:
        shell.start(*argv)
    assert caught.value.code == "no-working-directory"


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo 'image format not recognized' >&2; exit 255", None, "damaged"),
        (f"echo '{LAYER_MISSING}/x' >&2; exit 78", "overlay-unavailable", "flat"),
        (f"echo 'FATAL: {NO_SHELL}' >&2; exit 255", "no-shell", "/bin/sh"),
        ("kill -KILL $$", None, "signal SIGKILL"),
        (f"echo nonsense >&0; {NAP}5", None, "did not start"),
    ],
)
def test_what_does_not_start(
    shell: Shell, script: str, code: str | None, words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        shell.start("/bin/sh", "-c", script)
    assert caught.value.code == (code or "container-start-failed")
    assert words in str(caught.value)


def test_what_does_not_start_in_time(shell: Shell) -> None:
    with pytest.raises(TaskError, match=r"did not start within 0\.5 s"):
        shell.start("/bin/sh", "-c", f"{NAP}6", start_timeout=0.5)
    assert not asleep()


def test_a_program_that_is_not_there(shell: Shell) -> None:
    with pytest.raises(TaskError, match="did not start") as caught:
        shell.start("/no/such/apptainer")
    assert "No such file" in caught.value.tail[-1]
