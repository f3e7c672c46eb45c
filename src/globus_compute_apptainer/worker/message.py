"""The messages that carry a task and its result, without the library's models.

Runs in worker processes. To build the models of ``globus_compute_common`` for every
task costs more than to run a small one. A task whose message has the usual form, that
of its ``proto1.py``, is read as JSON. Of results, all but the identity, the data and
the times is the same from one to the next: the library packs such a message once, and
what varies is put in its place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, TaskTransition
from globus_compute_common.tasks import ActorName, TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping

_USUAL: Final = b'\x01{"'  # version; JSON in UTF-8
_OLD: Final = ("container_id", "container")  # of the library, and not used any more
_QUOTED: Final = json.JSONEncoder(ensure_ascii=False).encode

LARGE: Final = 1 << 12
"""Characters from which on the library is quicker: it has a better encoder."""

# What no message has by chance.
_ID: Final = "6c4f1d6e-93a5-4d0e-8f0b-5a7d9b0c3e21"
_DATA: Final = "d9e1c6c1-data-5f0b"
_START: Final = 7_301_993_557_219_845_123
_END: Final = 7_301_993_557_219_845_321


def task_buffer(packed_task: bytes, task_id: str) -> str | None:
    """What the library finds in the message of a task.

    :param task_id: as UUIDs are written
    :returns: None where the library has to look: it is another task's or of another
        form, or something is wrong with it
    """
    if not packed_task.startswith(_USUAL):
        return None
    try:
        envelope = json.loads(packed_task[1:].decode())
        data = envelope["data"]
        usual = envelope["message_type"] == "task" and data["task_id"] == task_id
        buffer = data["task_buffer"]
        for name in _OLD:
            usual = usual and data.pop(name, None) is None
        if usual and type(buffer) is str and len(envelope) == len(data) == 2:
            return buffer
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return None


class Times(NamedTuple):
    """When the execution started and ended, in nanoseconds of the clock."""

    start: int
    end: int


class Form:
    """Packs results that have the same details."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        self._details = details
        self._parts: list[bytes] = []
        packed = self._by_library(_ID, _DATA, Times(_START, _END))
        for hole in (_ID, json.dumps(_DATA), str(_START), str(_END)):
            if packed.count(hole.encode()) == 1:
                before, _, packed = packed.partition(hole.encode())
                self._parts.append(before)
        self._parts.append(packed)

    def fill(self, task_id: str, data: str, times: Times) -> bytes:
        """The bytes that the library would make.

        :param task_id: as UUIDs are written
        """
        if len(data) > LARGE:
            return self._by_library(task_id, data, times)
        try:
            a, b, c, d, e = self._parts
            text = _QUOTED(data).encode()
        except ValueError:  # the library has another order of things, or refuses this
            return self._by_library(task_id, data, times)
        start, end = b"%d" % times.start, b"%d" % times.end
        return b"".join((a, task_id.encode(), b, text, c, start, d, end, e))

    def _by_library(self, task_id: str, data: str, times: Times) -> bytes:
        packed: bytes = messagepack.pack(
            Result(
                task_id=task_id,
                data=data,
                details=self._details,
                task_statuses=transitions(times),
            )
        )
        return packed


def transitions(times: Times) -> list[TaskTransition]:
    """What a result says of its times."""
    return [
        TaskTransition(timestamp=time, state=state, actor=ActorName.WORKER)
        for time, state in (
            (times.start, TaskState.EXEC_START),
            (times.end, TaskState.EXEC_END),
        )
    ]
