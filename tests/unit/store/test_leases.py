"""What somebody uses is known to everybody, and to nobody once it is over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.owners import Owner
from globus_compute_apptainer.store.leases import Leases
from globus_compute_apptainer.store.presence import Presence, Timing

A, B = "images-a", "images-b"
root_only = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def quiet() -> Presence:
    """A process whose signs of life the test gives by hand."""
    return Presence(Timing(beat=3600.0))


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "v2").mkdir()
    return tmp_path / "v2"


def settle(leases: Leases) -> None:
    """Let time pass: what is unused goes."""
    for name in leases._written:
        leases._written[name] -= 3600.0
    leases._beat()


def elsewhere() -> Presence:
    owner = replace(Owner.current(), host="0123456789", pid=1)
    return Presence(Timing(beat=3600.0, lease_expiry=100.0), owner=lambda: owner)


def test_making_one_touches_nothing(top: Path, quiet: Presence) -> None:
    assert Leases(top, quiet).in_use() == set()
    assert list(top.iterdir()) == []


def test_what_is_held_is_in_use_until_it_is_let_go(top: Path, quiet: Presence) -> None:
    leases = Leases(top, quiet)
    one, two = leases.hold(A), leases.hold(B)
    assert Leases(top, quiet).in_use() == {A, B}
    one.let_go()
    settle(leases)
    assert leases.in_use() == {B}
    two.let_go()
    settle(leases)
    assert list((top / "leases").iterdir()) == []


def test_one_process_may_hold_a_thing_many_times(top: Path, quiet: Presence) -> None:
    leases, other = Leases(top, quiet), Leases(top, quiet)
    held = [leases.hold(A), leases.hold(A), other.hold(A)]
    held[0].let_go()
    held[0].let_go()  # once more changes nothing
    settle(leases)
    assert leases.in_use() == {A}
    held[1].let_go()
    settle(leases)
    settle(other)
    assert leases.in_use() == {A}, "the other one's"
    held[2].let_go()
    settle(other)
    assert leases.in_use() == set()


def test_what_is_used_again_and_again_is_written_once(top: Path, quiet: Presence):
    leases = Leases(top, quiet)
    leases.hold(A).let_go()
    (folder,) = (top / "leases").iterdir()
    (folder / A).unlink()  # it would be made again if it were looked for
    for _ in range(100):
        leases.hold(A).let_go()
    assert list(folder.iterdir()) == []


def test_a_lease_that_was_let_go_lingers_and_may_be_taken_up(top: Path, quiet) -> None:
    leases = Leases(top, quiet)
    leases.hold(A).let_go()
    leases._beat()
    assert leases.in_use() == {A}
    again = leases.hold(A)
    settle(leases)
    assert leases.in_use() == {A}
    again.let_go()


def test_what_builds_use_is_kept_for_the_builds_that_run(top: Path, quiet) -> None:
    leases = Leases(top, quiet)
    with leases.building():
        leases.use(A)
        with leases.building():
            leases.use(B)
        settle(leases)
        assert leases.in_use() == {A, B}, "the outer one may use both"
    settle(leases)
    assert leases.in_use() == set()
    leases.use(A)
    with leases.building():  # which began after it was used
        settle(leases)
        assert leases.in_use() == set()


def _hold_and_die(top: Path) -> None:
    Leases(top).hold(A)
    os.kill(os.getpid(), signal.SIGKILL)


def test_leases_of_the_dead_have_no_effect_and_go(top: Path, quiet: Presence) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_hold_and_die, args=(top,)
    )
    process.start()
    process.join(60)
    assert len(list((top / "leases").iterdir())) == 1
    assert Leases(top, quiet).in_use() == set()
    assert list((top / "leases").iterdir()) == []


def test_leases_elsewhere_have_effect_until_they_are_long_silent(top: Path, quiet):
    Leases(top, elsewhere()).hold(A)
    (folder,) = (top / "leases").iterdir()
    here = Leases(top, Presence(Timing(lease_expiry=100.0)))
    assert here.in_use() == {A}
    now = folder.stat().st_mtime
    os.utime(folder, (now - 90, now - 90))
    assert here.in_use() == {A}
    os.utime(folder, (now - 200, now - 200))
    assert here.in_use() == set()
    assert not folder.exists()


def test_who_was_taken_for_dead_and_lives_holds_its_leases_again(top: Path) -> None:
    leases = Leases(top, elsewhere())
    leases.hold(A)
    (folder,) = (top / "leases").iterdir()
    (folder / A).unlink()
    folder.rmdir()
    leases._beat()
    assert leases.in_use() == {A}


def test_a_forked_child_has_no_leases_and_ends_none(top: Path, quiet: Presence) -> None:
    leases = Leases(top, quiet)
    leases.hold(A)

    def child() -> None:
        assert leases._counts == {}
        leases.hold(B)
        leases.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert leases.in_use() == {A}


def test_closing_leaves_nothing(top: Path, quiet: Presence) -> None:
    leases = Leases(top, quiet)
    leases.hold(A)
    leases.close()
    assert list((top / "leases").iterdir()) == []


def test_what_is_let_go_after_the_closing_changes_nothing(top, quiet) -> None:
    leases = Leases(top, quiet)
    late = leases.hold(A)
    leases.close()
    late.let_go()
    leases.hold(A)
    assert leases.in_use() == {A}


@root_only
def test_where_nothing_can_be_written_there_is_no_lease_and_no_error(top, quiet):
    (top / "leases").mkdir()
    (top / "leases").chmod(0o500)
    try:
        leases = Leases(top, quiet)
        leases.hold(A).let_go()
        leases.use(B)
        assert leases.in_use() == set()
    finally:
        (top / "leases").chmod(0o700)


@pytest.mark.parametrize("name", ["", "x", "lease-of-somebody", ".clock"])
def test_other_things_among_the_leases_are_left_alone(top, quiet, name) -> None:
    (top / "leases" / name / "images-c").mkdir(parents=True)
    (top / "leases/lease-file").write_bytes(b"\0")
    assert Leases(top, quiet).in_use() == set()
    assert (top / "leases" / name).exists()


def test_threads_lose_no_count(top: Path, quiet: Presence) -> None:
    leases, start = Leases(top, quiet), threading.Barrier(8)

    def work() -> None:
        start.wait(60)
        for _ in range(200):
            leases.hold(A).let_go()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert leases._counts == {}
    settle(leases)
    assert leases.in_use() == set()
