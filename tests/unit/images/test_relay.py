"""A build in one process, seen by those who wait in another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.images.relay import Listener, Teller
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store

DIGEST = "sha256:" + "a" * 64


class Wire:
    """In the place of a lock: what is told is heard at once."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def tell(self, news: dict[str, Any], *, at_once: bool = False) -> None:
        self.listener(news)


def test_events_come_out_as_they_went_in() -> None:
    heard: list[events.Event] = []
    told: list[events.Event] = []
    teller = Teller(Wire(Listener(DIGEST, heard.append)), told.append)
    sent = [
        events.StageStarted(DIGEST, "pull"),
        events.Progress(DIGEST, "pull", 3, 10, "bytes", "a layer"),
        events.StageStarted(DIGEST, "pip"),
        events.OutputLine(DIGEST, "Resolved 3 packages"),
        events.Progress(DIGEST, "pip", 1, None, "packages"),
    ]
    for event in sent:
        teller(event)
    assert told == heard == sent


def test_a_stage_whose_beginning_was_missed_is_told_with_what_follows() -> None:
    heard: list[events.Event] = []
    Listener(DIGEST, heard.append)({"stage": "pack", "line": "x"})
    assert heard == [
        events.StageStarted(DIGEST, "pack"),
        events.OutputLine(DIGEST, "x"),
    ]


@pytest.mark.parametrize(
    "news", [{}, {"stage": None}, {"progress": 3}, {"progress": {"done": "x"}}]
)
def test_strange_news_are_passed_over(news: dict[str, Any]) -> None:
    heard: list[events.Event] = []
    Listener(DIGEST, heard.append)(news)
    assert heard == []


def test_a_process_that_waits_sees_the_builders_progress(
    tmp_path: Path, builder: Any
) -> None:
    heard, seen = [], threading.Event()

    def sink(event: events.Event) -> None:
        heard.append(event)
        if isinstance(event, events.StageStarted):
            seen.set()

    class Telling(type(builder)):
        def build(self, order, place, *, sink, **kwargs):
            sink(events.StageStarted(order.image.digest, "pip"))
            return super().build(order, place, sink=sink, **kwargs)

    builds, config = Telling(), BuildConfig(tmp_dir=tmp_path)
    builds.gate.clear()
    one, two = (
        ImageService(Store(tmp_path), lambda made=made: made, config, sink=to)
        for made, to in ((builds, events.ignore), (builder, sink))
    )
    parsed = model.parse({"base_image": "python:3.11-slim", "pip": ["pandas"]})
    spec = parsed.image_spec(default_base="docker://x", python="3.11")
    first = one.request(spec)
    assert builds.begun.wait(60)
    second = two.request(spec)
    assert seen.wait(60)
    assert heard[0] == events.StageStarted(spec.digest, "pip")
    builds.gate.set()
    assert (first.result(60).cache, second.result(60).cache) == ("built", "shared")
    one.close()
    two.close()
