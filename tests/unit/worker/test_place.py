"""The folder that a pool's workers share: theirs alone, and gone when they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import HostError
from globus_compute_apptainer.worker import place
from globus_compute_apptainer.worker.keeper.owner import start_of
from globus_compute_apptainer.worker.place import Pool, folder, sweep


@pytest.fixture
def mine() -> Pool:
    return Pool(os.getpid(), start_of(os.getpid()))


@pytest.fixture
def short():
    """A folder with a short name, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory(prefix="p") as path:
        yield Path(path)


def test_a_pool_is_its_workers_parent():
    pool = Pool.of_this_process()
    assert (pool.pid, pool.start) == (os.getppid(), start_of(os.getppid()))


def test_a_process_without_a_parent_is_its_own_pool(monkeypatch):
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert Pool.of_this_process().pid == os.getpid()


def test_private_and_the_same_for_all(mine, short):
    path = folder(mine, (str(short),))
    assert path.stat().st_mode & 0o777 == 0o700
    assert folder.__wrapped__(mine, (str(short),)) == path
    assert folder(Pool(1, 1), (str(short),)) != path


@pytest.mark.parametrize("how", ["open", "a link", "a file"])
def test_what_others_may_have_made_is_not_used(mine, short, how):
    first, second = short / "1", short / "2"
    first.mkdir(), second.mkdir()
    there = folder(mine, (str(first),))
    there.rmdir()
    if how == "open":
        there.mkdir()
        there.chmod(0o750)
    elif how == "a link":
        (short / "elsewhere").mkdir(mode=0o700)
        there.symlink_to(short / "elsewhere")
    else:
        there.write_text("")
    found = folder.__wrapped__(mine, (str(first), str(second)))
    assert found.parent == second


def test_a_long_name_is_passed_over(mine, short):
    long = short / ("x" * 60)
    long.mkdir()
    assert folder(mine, (str(long), str(short))).parent == short


def test_nowhere_to_go(mine):
    with pytest.raises(HostError, match="/no/such/folder") as caught:
        folder(mine, ("/no/such/folder",))
    assert caught.value.code == "no-node-folder"


def test_what_dead_pools_left_is_removed(mine, short):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as dead:
        left = folder(Pool(dead.pid, start_of(dead.pid)), (str(short),))
        (left / "keeper.log").write_text("")
        sweep(folder(mine, (str(short),)))
        assert left.exists()
        dead.kill()
    sweep(folder(mine, (str(short),)))
    assert not left.exists()
    assert list(short.iterdir()) == [folder(mine, (str(short),))]


def test_usual_places_are_short_enough(mine):
    path = folder(mine)
    for base in place.USUAL:
        address = str(Path(base) / path.name / place.SOCKET)
        assert len(address) < place.LONGEST_ADDRESS
    path.rmdir()
