"""A shelf holds whole things or none, whoever puts them and whenever they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store.shelf import Shelf

KEY = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "v2", "layers")


def put(shelf: Shelf, key: str = KEY, text: str = "x") -> Path:
    with shelf.workspace() as workspace:
        (workspace / "file").write_text(text)
        return shelf.keep(key, workspace)


def left_over(tmp_path: Path) -> list[str]:
    tmp = tmp_path / "v2" / "tmp"
    return [path.name for path in tmp.iterdir()] if tmp.exists() else []


def test_making_one_touches_nothing(tmp_path):
    Shelf(tmp_path / "v2", "layers").find(KEY)
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_is_found(shelf, tmp_path):
    assert shelf.find(KEY) is None
    place = put(shelf)
    assert shelf.find(KEY) == place
    assert (place / "file").read_text() == "x"
    assert shelf.find(OTHER) is None
    assert left_over(tmp_path) == []
    assert Shelf(tmp_path / "v2", "bases").find(KEY) is None


def test_a_second_one_of_the_same_key_is_dropped(shelf, tmp_path):
    put(shelf, text="first")
    assert (put(shelf, text="second") / "file").read_text() == "first"
    assert left_over(tmp_path) == []


def test_a_workspace_goes_when_the_work_fails(shelf, tmp_path):
    with pytest.raises(RuntimeError), shelf.workspace() as workspace:
        (workspace / "half").touch()
        raise RuntimeError
    assert left_over(tmp_path) == []


def test_what_is_removed_is_gone(shelf, tmp_path):
    put(shelf)
    assert shelf.remove(KEY)
    assert shelf.find(KEY) is None
    assert not shelf.remove(KEY)
    assert left_over(tmp_path) == []
    assert (put(shelf, text="new") / "file").read_text() == "new"


@pytest.mark.parametrize("key", ["", "sha256:", "sha256:" + "A" * 64, "../../etc"])
def test_other_keys_are_refused(shelf, key):
    for method in (shelf.find, shelf.remove):
        with pytest.raises(StoreError, match="digest"):
            method(key)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "v2").write_text("a file")
    with pytest.raises(StoreError), Shelf(tmp_path / "v2", "layers").workspace():
        pass


def _race(top: Path, text: str, gate: object, results: object) -> None:
    shelf = Shelf(top, "layers")
    with shelf.workspace() as workspace:
        for number in range(20):
            (workspace / f"file{number}").write_text(text)
        gate.wait()
        place = shelf.keep(KEY, workspace)
    found = {path.read_text() for path in place.iterdir()}
    results.put((len(list(place.iterdir())), len(found)))


def test_processes_that_put_one_key_at_once(tmp_path):
    """All get the same, whole directory."""
    fork = multiprocessing.get_context("fork")
    gate, results = fork.Barrier(4), fork.Queue()
    top = tmp_path / "v2"
    started = [
        fork.Process(target=_race, args=(top, f"text{number}", gate, results))
        for number in range(4)
    ]
    for process in started:
        process.start()
    said = [results.get(timeout=60) for _ in started]
    for process in started:
        process.join(60)
    assert said == [(20, 1)] * 4
    assert left_over(tmp_path) == []


def _locked_once(top: Path, order: object, results: object) -> None:
    shelf = Shelf(top, "layers")
    with shelf.lock(KEY, cancel=threading.Event(), timeout=60):
        made = shelf.find(KEY) is None
        if made:
            put(shelf, text=str(os.getpid()))
    results.put(made)


def test_under_the_lock_one_makes_it(tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    args = (tmp_path / "v2", None, results)
    started = [fork.Process(target=_locked_once, args=args) for _ in range(4)]
    for process in started:
        process.start()
    assert sorted(results.get(timeout=60) for _ in started) == [False] * 3 + [True]
    for process in started:
        process.join(60)


def _die_while_making(top: Path, working: object) -> None:
    shelf = Shelf(top, "layers")
    with (
        shelf.lock(KEY, cancel=threading.Event(), timeout=60),
        shelf.workspace() as workspace,
    ):
        (workspace / "file").write_text("half")
        working.set()
        signal.pause()


def test_the_death_of_who_makes_it_frees_the_lock(shelf, tmp_path):
    fork = multiprocessing.get_context("fork")
    working = fork.Event()
    victim = fork.Process(target=_die_while_making, args=(tmp_path / "v2", working))
    victim.start()
    assert working.wait(60)
    with (
        pytest.raises(StoreError) as caught,
        shelf.lock(KEY, cancel=threading.Event(), timeout=0),
    ):
        pass
    assert caught.value.code == "lock-timeout"
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(60)
    with shelf.lock(KEY, cancel=threading.Event(), timeout=10):
        assert shelf.find(KEY) is None
        assert (put(shelf, text="whole") / "file").read_text() == "whole"


def test_waiting_for_the_lock_can_be_ended(shelf):
    cancel = threading.Event()
    cancel.set()
    with (
        shelf.lock(KEY, cancel=threading.Event()),
        pytest.raises(StoreError) as caught,
        shelf.lock(KEY, cancel=cancel),
    ):
        pass
    assert caught.value.code == "build-cancelled"
