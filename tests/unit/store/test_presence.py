"""Signs of life: given while something is held, and no longer."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from globus_compute_apptainer.store.presence import (
    Presence,
    Timing,
    file_system_time,
)

QUICK = Timing(beat=0.01)


def wait_for(condition) -> None:
    nap = threading.Event()
    for _ in range(6000):
        if condition():
            return
        nap.wait(0.01)
    raise AssertionError("it did not happen")


def test_signs_are_given_again_and_again_until_the_end() -> None:
    presence, beats = Presence(QUICK), []
    presence.begin("x", lambda: beats.append(1))
    assert presence.gives("x")
    wait_for(lambda: len(beats) > 3)
    presence.end("x")
    assert not presence.gives("x")
    wait_for(lambda: not presence._running)
    presence.begin("y", lambda: beats.clear())
    wait_for(lambda: not beats)
    presence.end("y")


@pytest.mark.parametrize("error", [OSError("gone"), ZeroDivisionError()])
def test_one_that_fails_stops_no_other(error: Exception) -> None:
    presence, beats = Presence(QUICK), []

    def failing() -> None:
        raise error

    presence.begin("bad", failing)
    presence.begin("good", lambda: beats.append(1))
    wait_for(lambda: len(beats) > 3)
    presence.end("bad")
    presence.end("good")


def test_a_machine_without_threads_gives_none_and_raises_nothing(monkeypatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    presence, beats = Presence(QUICK), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        presence.begin("x", lambda: beats.append(1))
    presence.begin("y", lambda: None)  # the next one starts it
    wait_for(lambda: beats)
    presence.end("x")
    presence.end("y")


def test_a_forked_child_gives_signs_of_its_own_only() -> None:
    presence, beats = Presence(QUICK), []
    presence.begin("x", lambda: beats.append(1))

    def child() -> None:
        assert not presence.gives("x")
        presence.begin("y", lambda: beats.append(2))
        wait_for(lambda: 2 in beats)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    presence.end("x")
    assert process.exitcode == 0


def test_the_file_systems_clock_is_read_and_leaves_nothing(tmp_path: Path) -> None:
    assert abs(file_system_time(tmp_path) - time.time()) < 60
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        file_system_time(tmp_path / "none")


def test_timing_leaves_room_for_what_is_seen_late() -> None:
    """A network file system may show times a minute late."""
    timing = Timing()
    assert timing.expiry > 60 + 4 * timing.beat
    assert timing.confirm > 2 * timing.beat
    assert timing.lease_expiry > timing.expiry
    assert os.getpid() == Presence().owner().pid
