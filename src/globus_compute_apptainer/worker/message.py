"""The message that carries a result, filled in on a form that was made before.

Runs in worker processes. Building the library's model for every result costs more than
to run a small task. All but the identity, the data and the times is the same from one
result to the next: the library packs such a message once, and what varies is put in
its place.
"""

from __future__ import annotations

import functools
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, TaskTransition
from globus_compute_common.tasks import ActorName, TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping

# What no message has by chance.
_ID: Final = uuid.UUID("6c4f1d6e-93a5-4d0e-8f0b-5a7d9b0c3e21")
_DATA: Final = "d9e1c6c1-data-5f0b"
_START: Final = 7_301_993_557_219_845_123
_END: Final = 7_301_993_557_219_845_321


@dataclass(frozen=True)
class Times:
    """When the execution started and ended, in nanoseconds of the clock."""

    start: int
    end: int


class Form:
    """Packs results that have the same details."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        self._details = details
        self._parts: list[bytes] = []
        packed = self._by_library(_ID, _DATA, Times(_START, _END))
        for hole in (str(_ID), json.dumps(_DATA), str(_START), str(_END)):
            if packed.count(hole.encode()) == 1:
                before, _, packed = packed.partition(hole.encode())
                self._parts.append(before)
        self._parts.append(packed)

    def fill(self, task_id: uuid.UUID, data: str, times: Times) -> bytes:
        """The bytes that the library would make."""
        before_id, *rest = self._parts
        if len(rest) != 4:  # the library has another order of things
            return self._by_library(task_id, data, times)
        try:
            text = json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # which the library refuses in its own words
            return self._by_library(task_id, data, times)
        filled = (str(task_id).encode(), text, b"%d" % times.start, b"%d" % times.end)
        return before_id + b"".join(
            p for pair in zip(filled, rest, strict=True) for p in pair
        )

    def _by_library(self, task_id: uuid.UUID, data: str, times: Times) -> bytes:
        packed: bytes = messagepack.pack(
            Result(
                task_id=task_id,
                data=data,
                details=self._details,
                task_statuses=transitions(times),
            )
        )
        return packed


@functools.lru_cache(maxsize=256)
def form(details: tuple[tuple[str, Any], ...], container: str) -> Form:
    """The form for results of one kind of container; kept for the next.

    :param container: JSON of ``details["container"]``
    """
    return Form({**dict(details), "container": json.loads(container)})


def transitions(times: Times) -> list[TaskTransition]:
    """What a result says of its times."""
    return [
        TaskTransition(timestamp=time, state=state, actor=ActorName.WORKER)
        for time, state in (
            (times.start, TaskState.EXEC_START),
            (times.end, TaskState.EXEC_END),
        )
    ]
