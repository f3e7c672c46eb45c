"""What was looked up a moment ago: one look for many tasks, and never for long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint import recent as module
from globus_compute_apptainer.endpoint.recent import Recent
from globus_compute_apptainer.endpoint.requests import Requests, Wanted
from globus_compute_apptainer.images import Ready


class Images:
    """Counts looks; a stand-in for the service, whose looks have tests of their own."""

    def __init__(self) -> None:
        self.looks, self.answer = 0, None

    def cached(self, digest: str, *, max_age: float | None = None) -> Any:
        self.looks += 1
        return self.answer and Ready(*self.answer)


class Told:
    """Stands for the terms of a task."""

    def __init__(self, order: object, serializers: object) -> None:
        self._text = f"{order} {serializers}"

    def to_wire(self) -> str:
        return self._text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def images() -> Images:
    found = Images()
    found.answer = ("an image", "hit")
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(images: Images, clock: Clock) -> Recent:
    return Recent(images, ContainersConfig.parse({}), Told, clock)  # type: ignore[arg-type]


def want(**spec: Any) -> Wanted:
    config = ContainersConfig.parse({})
    found = Requests(config, "3.11").wanted({"pip": ["pandas"], **spec})
    assert found is not None
    return found


def test_many_tasks_cost_one_look(recent: Recent, images: Images) -> None:
    assert len({id(recent.cached(want())) for _ in range(10)}) == 1
    assert images.looks == 1


def test_after_a_while_it_is_looked_up_anew(recent, images, clock) -> None:
    first = recent.cached(want())
    clock.now += module.SECONDS * 1.01
    assert recent.cached(want()) is not first
    assert images.looks == 2
    images.answer = None
    clock.now += module.SECONDS * 1.01
    assert recent.cached(want()) is None


def test_what_is_not_there_is_not_remembered(recent, images) -> None:
    images.answer = None
    assert recent.cached(want()) is None
    images.answer = ("an image", "hit")
    assert recent.cached(want()) is not None


def test_what_is_forgotten_is_looked_up(recent, images) -> None:
    first = recent.cached(want())
    recent.forget(want())
    assert recent.cached(want()) is not first
    recent.forget(want(pip=["numpy"]))  # never asked for


def test_who_asks_for_a_young_one_has_it_looked_at(recent, images) -> None:
    recent.cached(want())
    recent.cached(replace(want(), max_age=60.0))
    assert images.looks == 2


def test_what_workers_are_told_is_made_once_for_each_way_to_run(
    recent, images, monkeypatch
) -> None:
    made = []

    def order(*arguments: object) -> str:
        made.append(arguments)
        return f"order {len(made)}"

    monkeypatch.setattr(module, "container_order", order)
    ready = recent.cached(want())
    plain, other = want(), want(env={"A": "1"})
    assert {recent.terms(ready, plain, None) for _ in range(3)} == {"order 1 None"}
    assert recent.terms(ready, other, None) == "order 2 None"
    assert recent.terms(ready, plain, ["a.B"]) == "order 3 ['a.B']"
    assert recent.terms(ready, plain, None) == "order 1 None"
    recent.forget(plain)
    assert recent.terms(recent.cached(plain), plain, None) == "order 4 None"


def test_memory_does_not_grow(recent, monkeypatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    for number in range(5):
        recent.cached(want(pip=[f"package{number}"]))
    assert len(recent._looked) == 3
