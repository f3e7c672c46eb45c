"""A dead owner is proven, or nothing is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer import owners


def test_names_are_never_the_same_and_start_as_told() -> None:
    names = {owners.owned_name("image") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("image-") for name in names)


def test_what_a_killed_process_left_is_found_by_its_prefix(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from globus_compute_apptainer.owners import owned_name\n"
        "for prefix in ('image', 'layers', 'image.json'):\n"
        "    pathlib.Path(sys.argv[1], owned_name(prefix)).touch()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env)
    (tmp_path / owners.owned_name("image")).touch()  # of a living process
    (tmp_path / "image-of-somebody").touch()
    everything = list(owners.of_the_dead(tmp_path))
    assert len(everything) == 3
    (found,) = owners.of_the_dead(tmp_path, "layers")
    assert found.name.startswith("layers-")


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list(owners.of_the_dead(tmp_path / "none")) == []


def name(**changes: str) -> str:
    host, boot, namespace = owners.machine()
    parts = {
        "host": host,
        "boot": boot,
        "namespace": namespace,
        "pid": str(os.getpid()),
        "start": str(owners.start_time(os.getpid())),
        **changes,
    }
    return "gc-apptainer-build-{host}-{boot}-{namespace}-{pid}-{start}-01234567".format(
        **parts
    )


@pytest.mark.parametrize(
    ("changes", "removed"),
    [
        ({}, False),  # this process
        ({"start": "1"}, True),  # its number has been given again
        ({"pid": "4194999"}, True),
        ({"boot": "0" * 8}, True),
        ({"host": "0" * 10, "pid": "4194999"}, False),  # nothing is known of others
        ({"namespace": "1", "pid": "4194999"}, False),
    ],
)
def test_only_what_is_proven_dead_is_found(
    tmp_path: Path, changes: dict[str, str], removed: bool
):
    path = tmp_path / name(**changes)
    path.mkdir()
    other = tmp_path / "something-else"
    other.mkdir()
    assert list(owners.of_the_dead(tmp_path, "gc-apptainer-build")) == (
        [path] if removed else []
    )


def test_an_owner_is_written_and_read() -> None:
    owner = owners.Owner.current()
    assert owners.Owner.parse(str(owner)) == owner
    assert owners.Owner.of_name(owners.owned_name("a-b", owner)) == owner
    for text in ("", "x", f"{owner} ", f"x-{owner}", str(owner)[:-1] + "x"):
        assert owners.Owner.parse(text) is None
    assert owners.Owner.of_name(str(owner)) is None


def test_a_process_that_nobody_waited_for_yet_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(
        owners.Owner.current(), pid=child.pid, start=owners.start_time(child.pid)
    )
    assert not owner.is_dead()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert owner.is_dead()
    child.communicate()
    assert owner.is_dead()


def test_processes_that_proc_hides_are_asked_for(monkeypatch) -> None:
    """As with `hidepid`: those of other users cannot be seen, but they are there."""
    monkeypatch.setattr(owners, "_stat", lambda pid: [])
    theirs = replace(owners.Owner.current(), pid=1, start=17)
    refused = PermissionError(1, "not yours")

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (1, 0)
        raise refused

    monkeypatch.setattr(os, "kill", kill)
    assert not theirs.is_dead()
    refused = ProcessLookupError(3, "no such process")
    assert theirs.is_dead()


def test_who_asks_is_alive() -> None:
    made_up = replace(owners.Owner.current(), host="0123456789", pid=1, start=1)
    assert not made_up.is_dead(made_up)
    assert made_up.is_near(made_up)
    assert not made_up.is_near(owners.Owner.current())
