"""What is remembered of builds."""

from __future__ import annotations

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.endpoint import progress
from globus_compute_apptainer.endpoint.progress import Progress


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def passed() -> list[events.Event]:
    return []


@pytest.fixture
def watched(clock, passed) -> Progress:
    return Progress(passed.append, clock=lambda: clock[0])


def test_events_pass_on(watched, passed) -> None:
    told = [events.StageStarted("a", "pull"), events.OutputLine("a", "x")]
    for event in told:
        watched(event)
    assert passed == told


def test_nothing_is_known_of_other_builds(watched) -> None:
    watched(events.StageStarted("a", "pull"))
    assert watched.of("b") is None


def test_a_build_is_followed_to_its_end(watched, clock) -> None:
    watched(events.StageStarted("a", "pull"))
    clock[0] += 5
    watched(events.OutputLine("a", "fetching"))
    watched(events.Progress("a", "pull", 1, 2, "bytes"))
    assert watched.of("a") == progress.Build("pull", 5.0, False, "", ("fetching",))
    watched(events.StageStarted("a", "pip"))
    clock[0] += 1
    assert (watched.of("a").stage, watched.of("a").seconds) == ("pip", 1.0)
    watched(events.BuildFinished("a", 6.0, "build-failed"))
    clock[0] += 2
    ended = progress.Build("pip", 2.0, True, "build-failed", ("fetching",))
    assert watched.of("a") == ended


def test_the_next_build_begins_anew(watched) -> None:
    watched(events.StageStarted("a", "pip"))
    watched(events.OutputLine("a", "old"))
    watched(events.BuildFinished("a", 6.0, "build-failed"))
    watched(events.StageStarted("a", "pull"))
    assert watched.of("a").lines == ()
    assert not watched.of("a").ended
    assert watched.of("a").error == ""


def test_memory_is_bounded(watched) -> None:
    for number in range(progress.REMEMBERED + 10):
        watched(events.StageStarted(str(number), "pip"))
    assert watched.of("9") is None
    assert watched.of("10") is not None
    for number in range(progress.LINES + 10):
        watched(events.OutputLine("10", f"{number} " + "x" * 10_000))
    lines = watched.of("10").lines
    assert len(lines) == progress.LINES
    assert lines[0].startswith("10 ")
    assert max(map(len, lines)) <= 500
