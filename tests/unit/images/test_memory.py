"""Failures that are remembered: which, for whom, and for how long."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from globus_compute_apptainer import errors
from globus_compute_apptainer.errors import BuildError, ContainerError, SpecError
from globus_compute_apptainer.images import memory
from globus_compute_apptainer.images.memory import Kind, Memory, kind_of, seconds
from globus_compute_apptainer.store.failures import Failures

SPEC = "sha256:" + "a" * 64
WRONG = BuildError(
    "no such package",
    hint="check the names",
    log="/logs/x",
    code="package-not-found",
    stage="pip",
    command="uv",
    tail=("one", "two"),
)
DOWN = BuildError("no answer", code="index-unreachable", stage="pip")


class World:
    """A memory, and a clock to go with it."""

    def __init__(self, top: Path, scope: str = "mine") -> None:
        (top / "tmp").mkdir(parents=True, exist_ok=True)
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.failures = Failures(top, "linux-amd64")
        self.memory = Memory(self.failures, scope, lambda: self.now)

    def later(self, seconds: float) -> World:
        self.now += timedelta(seconds=seconds)
        return self


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_nothing_is_known_of_what_did_not_fail(world: World) -> None:
    assert world.memory.recall(SPEC) is None


def test_an_error_comes_back_as_it_was_and_says_that_it_is_remembered(world: World):
    world.memory.remember(SPEC, WRONG)
    error = world.later(180).memory.recall(SPEC)
    assert isinstance(error, BuildError)
    for name in ("message", "log", "code", "stage", "command", "tail"):
        assert getattr(error, name) == getattr(WRONG, name)
    assert error.hint.startswith("check the names\n")
    assert "remembered from 3 min ago and is not tried again for 57 min" in error.hint
    assert "`refresh: 1s`" in error.hint
    assert "--fresh" in error.hint


def test_a_wish_that_is_wrong_is_remembered_for_an_hour(world: World) -> None:
    world.memory.remember(SPEC, WRONG)
    assert world.later(3599).memory.recall(SPEC)
    assert world.later(2).memory.recall(SPEC) is None


def test_what_did_not_answer_is_asked_again_soon_and_then_less_often(world: World):
    for expected in (30, 60, 120, 240, 480, 600, 600):
        world.memory.remember(SPEC, DOWN)
        assert world.later(expected - 1).memory.recall(SPEC)
        assert world.later(1.5).memory.recall(SPEC) is None


def test_failures_long_ago_do_not_count(world: World) -> None:
    for _ in range(5):
        world.memory.remember(SPEC, DOWN)
    world.later(2 * 3600).memory.remember(SPEC, DOWN)
    assert world.later(31).memory.recall(SPEC) is None


@pytest.mark.parametrize(
    "error",
    [
        ContainerError("a fault of ours", code="internal-error"),
        errors.StoreError("full", code="disk-full"),
        errors.HostError("none", code="apptainer-missing"),
        errors.PolicyError("not here"),
        SpecError("bad"),
        BuildError("large", code="image-too-large"),
        BuildError("stopped", code="build-cancelled"),
        BuildError("stopped", code="endpoint-stopped"),
    ],
)
def test_what_says_nothing_of_the_spec_is_forgotten(world: World, error) -> None:
    world.memory.remember(SPEC, error)
    assert kind_of(error) is Kind.UNRELATED
    assert world.memory.recall(SPEC) is None


def test_who_asks_for_something_younger_is_not_told_of_it(world: World) -> None:
    world.memory.remember(SPEC, WRONG)
    world.later(10)
    assert world.memory.recall(SPEC, 60)
    assert world.memory.recall(SPEC, 1) is None


def test_success_ends_it(world: World) -> None:
    world.memory.remember(SPEC, WRONG)
    world.memory.forget(SPEC)
    world.memory.forget(SPEC)
    assert world.memory.recall(SPEC) is None


def test_all_processes_know_it_but_those_of_other_users_or_settings(tmp_path: Path):
    World(tmp_path).memory.remember(SPEC, WRONG)
    assert World(tmp_path).memory.recall(SPEC)
    assert World(tmp_path, scope="theirs").memory.recall(SPEC) is None


def test_a_clock_that_went_back_forgets(world: World) -> None:
    world.memory.remember(SPEC, WRONG)
    assert world.later(-100).memory.recall(SPEC) is None


@pytest.mark.parametrize("change", ["type", "at", "times", "error", "scope", "format"])
@pytest.mark.parametrize("value", [None, "nothing", 7, [], {}])
def test_damaged_memories_are_none(tmp_path: Path, change: str, value: object) -> None:
    world = World(tmp_path)
    world.memory.remember(SPEC, WRONG)
    (path,) = (tmp_path / "failures").rglob("*.json")
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, change: value}))
    found = world.memory.recall(SPEC)
    assert found is None or change == "times"
    for text in ("", "{", "[]", "\xff"):
        path.write_text(text, encoding="latin-1")
        assert world.memory.recall(SPEC) is None
    world.memory.remember(SPEC, WRONG)
    assert world.memory.recall(SPEC)


def test_a_cache_that_takes_no_file_forgets(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "failures").write_text("in the way")
    world.memory.remember(SPEC, WRONG)
    assert world.memory.recall(SPEC) is None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_every_code_has_one_kind() -> None:
    assert not memory._LASTING & memory._PASSING
    assert seconds(Kind.UNRELATED, 1) == 0
    assert seconds(Kind.PASSING, 1000) == memory.MOST_SECONDS
