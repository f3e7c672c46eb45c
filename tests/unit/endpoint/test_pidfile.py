"""The pid file of a killed endpoint, written and judged by upstream's own code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.cli import _pidfile_check

from globus_compute_apptainer.endpoint import pidfile
from globus_compute_apptainer.endpoint.engine import ApptainerEngine

STALE_SECONDS = 90
ENDPOINT = """
import signal, sys
from pathlib import Path
from globus_compute_endpoint.cli import _pidfile
from globus_compute_apptainer.endpoint import pidfile

directory = Path(sys.argv[1])
with _pidfile(directory / "daemon.pid", 90):
    pidfile.claim(directory)
    print("up", flush=True)
    signal.pause()
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {pidfile.DIRECTORY_VARIABLE: str(tmp_path)}


@contextlib.contextmanager
def started(directory: Path) -> Iterator[subprocess.Popen[str]]:
    script = directory.with_suffix(".py")
    script.write_text(ENDPOINT)
    argv = [sys.executable, script, directory]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The directory that a killed endpoint left, and its process id."""
    directory = tmp_path_factory.mktemp("killed")
    with started(directory) as process:
        os.kill(process.pid, signal.SIGKILL)
    return directory, process.pid


@pytest.fixture
def killed(killed_once: tuple[Path, int], tmp_path: Path) -> int:
    for path in killed_once[0].iterdir():
        shutil.copy2(path, tmp_path)
        (tmp_path / path.name).touch()
    return killed_once[1]


def upstream_refuses(directory: Path) -> bool:
    try:
        _pidfile_check(directory / pidfile.PID_FILE, STALE_SECONDS)
    except SystemExit:
        return True
    return False


def owned(directory: Path, **changes: Any) -> None:
    path = directory / pidfile.OWNER_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_pid_file_of_a_killed_endpoint_is_removed(
    killed, environ, tmp_path, caplog
) -> None:
    assert upstream_refuses(tmp_path)
    assert pidfile.remove_if_dead(environ)
    assert not upstream_refuses(tmp_path)
    assert f"process {killed} of this endpoint is dead" in caplog.text
    assert not pidfile.remove_if_dead(environ)


def test_that_of_a_living_one_is_not(environ, tmp_path) -> None:
    with started(tmp_path):
        assert not pidfile.remove_if_dead(environ)
        assert upstream_refuses(tmp_path)


def test_a_process_that_got_the_same_id_later_is_not_the_owner(
    environ, tmp_path
) -> None:
    (tmp_path / pidfile.PID_FILE).write_text(f"{os.getpid()}\n")
    pidfile.claim(tmp_path)
    assert not pidfile.remove_if_dead(environ)
    owned(tmp_path, start=1)
    assert pidfile.remove_if_dead(environ)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"boot": "earlier"},
        {"namespace": "1"},
        {"pid": 1},
        {"pid": None},
        {"start": None},
        {"start": 0},
    ],
    ids=str,
)
def test_where_nothing_is_proven_it_stays(killed, environ, tmp_path, changes) -> None:
    owned(tmp_path, **changes)
    assert not pidfile.remove_if_dead(environ)
    assert upstream_refuses(tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '"x"'])
def test_without_a_record_it_stays(killed, environ, tmp_path, content) -> None:
    path = tmp_path / pidfile.OWNER_FILE
    path.unlink() if content is None else path.write_text(content)
    assert not pidfile.remove_if_dead(environ)
    assert upstream_refuses(tmp_path)


@pytest.mark.parametrize("content", [None, "", "abc"])
def test_no_pid_is_nothing_to_remove(environ, tmp_path, content) -> None:
    if content is not None:
        (tmp_path / pidfile.PID_FILE).write_text(content)
    assert not pidfile.remove_if_dead(environ)
    assert not pidfile.remove_if_dead({})
    assert not pidfile.remove_if_dead({pidfile.DIRECTORY_VARIABLE: "/no/where"})


@pytest.mark.parametrize("wanted", [None, True, False])
def test_making_the_engine_removes_it_unless_told_otherwise(
    killed, environ, tmp_path, monkeypatch, wanted
) -> None:
    """The configuration is loaded before upstream looks at the file."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    block = {} if wanted is None else {"remove_dead_pid_file": wanted}
    ApptainerEngine(address="127.0.0.1", containers=block).shutdown()
    assert upstream_refuses(tmp_path) is (wanted is False)


def test_a_started_engine_says_who_it_is(make_engine, environ, tmp_path) -> None:
    make_engine()
    (tmp_path / pidfile.PID_FILE).write_text(f"{os.getpid()}\n")
    assert json.loads((tmp_path / pidfile.OWNER_FILE).read_text())["pid"] == os.getpid()
    assert not pidfile.remove_if_dead(environ)


def test_a_directory_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path, caplog
) -> None:
    pidfile.claim(tmp_path / "not-there")
    assert "cannot be written" in caplog.text
