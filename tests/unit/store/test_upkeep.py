"""Old logs and locks go, and nothing that is named, held or taken at that moment."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner
from globus_compute_apptainer.store import locks
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.failures import Failures
from globus_compute_apptainer.store.presence import Presence, Timing
from globus_compute_apptainer.store.records import Records
from globus_compute_apptainer.store.upkeep import OLD_SECONDS, Swept, Upkeep

A, B = ("sha256:" + letter * 64 for letter in "ab")
OLD = OLD_SECONDS + 100
SECONDS = 3.0


@pytest.fixture
def upkeep(store: Store) -> Upkeep:
    store.prepare()
    return Upkeep(store.top)


def age(*paths: Path, seconds: float = OLD) -> None:
    then = time.time() - seconds
    for path in paths:
        os.utime(path, (then, then))


def log(store: Store, spec: str, seconds: float = OLD) -> Path:
    path = store.log_path(spec)
    path.write_text("0123456789")
    age(path, seconds=seconds)
    return path


def lock(store: Store, spec: str) -> Path:
    """One that was held and is old."""
    with store.lock(spec, cancel=threading.Event()):
        pass
    place = store.top / "locks" / spec.removeprefix("sha256:")
    age(place)
    return place


# -- logs -----------------------------------------------------------------------------


def test_old_logs_go_and_young_ones_stay(store, upkeep) -> None:
    old, young = log(store, A), log(store, A, OLD_SECONDS - 100)
    other = log(store, B)
    assert upkeep.sweep() == Swept(logs=2, size=20)
    assert [path.exists() for path in (old, young, other)] == [False, True, False]


def test_the_log_that_an_image_names_stays(store, upkeep, sif, manifest) -> None:
    replaced, named = log(store, A), log(store, A)
    store.publish(sif, manifest("a", log=str(named)))
    assert upkeep.sweep().logs == 1
    assert (replaced.exists(), named.exists()) == (False, True)
    store.leases.close()
    store.make_room(0)
    assert upkeep.sweep().logs == 1
    assert not named.exists()


def test_the_log_that_a_remembered_failure_names_stays(store, upkeep) -> None:
    named, failures = log(store, A), Failures(store.top, store.platform)
    failures.write(A, {"error": {"log": str(named)}})
    assert upkeep.sweep() == Swept()
    failures.forget(A)
    assert upkeep.sweep().logs == 1


def test_where_it_cannot_be_read_what_is_named_logs_stay(store, upkeep) -> None:
    kept = log(store, A)
    (store.top / "index" / store.platform / "aa" / f"{'a' * 64}.json").mkdir(
        parents=True
    )
    assert upkeep.sweep() == Swept()
    assert kept.exists()


def test_an_empty_directory_of_logs_goes_later(store, upkeep) -> None:
    path = log(store, A)
    upkeep.sweep()
    assert path.parent.is_dir()
    age(path.parent)
    upkeep.sweep()
    assert not path.parent.exists()
    assert store.log_path(A).exists()


# -- locks ----------------------------------------------------------------------------


def test_an_old_lock_goes_and_can_be_taken_again(store, upkeep) -> None:
    place = lock(store, A)
    assert upkeep.sweep() == Swept(locks=1)
    assert not place.exists()
    assert list((store.top / "tmp").iterdir()) == []
    with store.lock(A, cancel=threading.Event(), timeout=0) as held:
        held.check()
        assert [path.name for path in place.iterdir()] == ["00000001"]


def test_a_young_lock_stays(store, upkeep) -> None:
    place = lock(store, A)
    age(place, seconds=OLD_SECONDS - 100)
    assert upkeep.sweep() == Swept()
    assert place.exists()


def test_a_lock_that_is_held_stays_however_old(store, upkeep) -> None:
    place = store.top / "locks" / ("a" * 64)
    with store.lock(A, cancel=threading.Event()) as held:
        age(place, *place.iterdir())
        assert upkeep.sweep(dry=True) == upkeep.sweep() == Swept()
        held.check()


@pytest.mark.parametrize("here", [True, False])
def test_of_the_dead_only_those_that_are_proven_to_be(store, upkeep, here) -> None:
    mine = Owner.current()
    dead = replace(mine, pid=4194999) if here else replace(mine, host="0123456789")
    place = store.top / "locks" / ("a" * 64)
    with Records.opened(place) as records:
        told = locks._Lock(place, Presence(owner=lambda: dead))._told("gone")
        assert records.make(1, told)
    age(place, *place.iterdir())
    assert upkeep.sweep(dry=True).locks == upkeep.sweep().locks == int(here)
    assert place.exists() != here


def test_who_looked_before_it_was_removed_does_not_hold_it(store, upkeep) -> None:
    """Neither in the directory that is gone, nor in one that took its name."""
    place = lock(store, A)
    aside = store.top / "aside"
    with Records.opened(place) as late:
        before = late.numbers()
        place.rename(aside)
        with store.lock(A, cancel=threading.Event(), timeout=0) as held:
            assert late.make(2, "{}")
            assert not locks._is_next(late, before, 2)
            held.check()
    assert [path.name for path in aside.iterdir()] == ["00000001.free"]


def test_a_holder_from_before_takes_no_other_for_itself(
    store, upkeep, tmp_path
) -> None:
    """The number is the same, and the record is not."""
    place, never = tmp_path / "lock", threading.Event()
    stopped = locks.hold(place, cancel=never, timeout=0)
    first = stopped.__enter__()
    place.rename(tmp_path / "aside")
    with pytest.raises(StoreError) as caught:
        first.check()
    assert caught.value.code == "lock-lost"
    with locks.hold(place, cancel=never, timeout=0) as second:
        with pytest.raises(StoreError):
            first.check()
        stopped.__exit__(None, None, None)
        second.check()


def test_a_lock_that_cannot_be_moved_is_free_again(store, tmp_path) -> None:
    place = lock(store, A)
    assert not locks.remove(place, tmp_path / "none/there")
    with store.lock(A, cancel=threading.Event(), timeout=0):
        pass


# -- both -----------------------------------------------------------------------------


def test_a_dry_run_says_the_same_and_does_nothing(store, upkeep) -> None:
    there = [log(store, A), lock(store, A), lock(store, B)]
    before = sorted(store.top.rglob("*"))
    dry = store.remove_old(dry=True)
    assert sorted(store.top.rglob("*")) == before
    assert store.remove_old() == dry == Swept(logs=1, locks=2, size=10)
    assert not any(path.exists() for path in there)


def test_it_is_done_once_a_day_and_not_when_somebody_waits(store, upkeep) -> None:
    place = lock(store, A)
    store.prepare()  # before every build
    assert place.exists()
    assert store.keep_up() == Swept(locks=1)
    assert not place.exists()
    again = lock(store, A)
    assert Store(store.root).keep_up() == Swept()
    assert again.exists()
    age(store.top / "locks/.upkeep", seconds=86500)
    assert store.keep_up() == Swept(locks=1)


# -- at the same moment ---------------------------------------------------------------

NAMES = ("x", "y")


def test_taking_and_removing_at_once_disturbs_nobody(store, upkeep) -> None:
    """Whoever holds a lock makes a directory and removes it: that fails for two."""
    fork = multiprocessing.get_context("fork")
    for name in NAMES:
        (store.root / name).mkdir()
    results = fork.Queue()
    takers = [fork.Process(target=_take, args=(store, n, results)) for n in range(4)]
    prunes = [fork.Process(target=_prune, args=(store, results)) for _ in range(2)]
    for process in (*takers, *prunes):
        process.start()
    told = [results.get(timeout=120) for _ in (*takers, *prunes)]
    for process in (*takers, *prunes):
        process.join(60)
        assert process.exitcode == 0
    taken = [count for kind, count in told if kind == "taken"]
    removed = sum(count for kind, count in told if kind == "removed")
    print(taken, removed)
    assert [text for kind, text in told if kind == "failed"] == []
    assert min(taken) > 10
    assert removed > 10
    assert list((store.top / "tmp").iterdir()) == []


def _take(store: Store, number: int, results) -> None:
    try:
        results.put(("taken", _taken(store, number)))
    except BaseException as error:
        results.put(("failed", repr(error)))
        raise


def _taken(store: Store, number: int) -> int:
    presence, never = Presence(Timing(poll=0.0005)), threading.Event()
    end, count = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        name = NAMES[(count + number) % len(NAMES)]
        place = store.top / "locks" / name
        with locks.hold(place, cancel=never, timeout=60, presence=presence) as held:
            alone = store.root / name / "alone"
            alone.mkdir()
            held.check()
            alone.rmdir()
        count += 1
    return count


def _prune(store: Store, results) -> None:
    upkeep, removed = Upkeep(store.top), 0
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            removed += upkeep.sweep(-3600.0).locks
        results.put(("removed", removed))
    except BaseException as error:
        results.put(("failed", repr(error)))
        raise
