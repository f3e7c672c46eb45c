"""What a build tells, passed on to the processes that wait for it.

Runs in the endpoint process and in ``gc-apptainer``. The news of a build lie beside
its lock, see :mod:`..store.locks`; they hold the latest only, so each says which stage
the build is in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from globus_compute_apptainer import events

if TYPE_CHECKING:
    from globus_compute_apptainer.store.locks import Held


class Teller:
    """A sink that also lets those know who wait for the lock."""

    def __init__(self, held: Held, sink: events.Sink) -> None:
        self._held, self._sink, self._stage = held, sink, ""

    def __call__(self, event: events.Event) -> None:
        self._sink(event)
        if isinstance(event, events.StageStarted):
            self._stage = event.stage
            self._held.tell({"stage": self._stage}, at_once=True)
        elif isinstance(event, events.Progress):
            told = dataclasses.asdict(event)
            self._held.tell({"stage": event.stage, "progress": told})
        elif isinstance(event, events.OutputLine):
            self._held.tell({"stage": self._stage, "line": event.line})


class Listener:
    """Turns the news of another process's build into events of this one's request."""

    def __init__(self, digest: str, sink: events.Sink) -> None:
        self._digest, self._sink, self._stage = digest, sink, ""

    def __call__(self, news: Mapping[str, Any]) -> None:
        stage = str(news.get("stage") or "")
        if stage and stage != self._stage:
            self._stage = stage
            self._sink(events.StageStarted(self._digest, stage))
        if isinstance(line := news.get("line"), str):
            self._sink(events.OutputLine(self._digest, line))
        if (progress := _progress(self._digest, news.get("progress"))) is not None:
            self._sink(progress)


def _progress(digest: str, told: object) -> events.Progress | None:
    """What another version may have written is not taken on trust."""
    if not isinstance(told, Mapping):
        return None
    try:
        total = told["total"]
        return events.Progress(
            digest,
            str(told["stage"]),
            int(told["done"]),
            None if total is None else int(total),
            str(told["unit"]),
            str(told["what"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
