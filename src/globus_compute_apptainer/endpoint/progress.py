"""How far the builds of this process are, for those who ask.

Runs in the endpoint process. An event sink: it looks at what passes and passes it on.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from globus_compute_apptainer import events

REMEMBERED: Final = 64
LINES: Final = 1000
_LINE: Final = 500


@dataclass(frozen=True)
class Build:
    """One build as it stands.

    :param stage: that it is in, or was in when it ended
    :param seconds: since it entered the stage, or since it ended
    :param ended: whether it has
    :param error: the error's code; empty if it did not fail
    :param lines: the last lines of its output, credentials removed
    """

    stage: str
    seconds: float
    ended: bool
    error: str
    lines: tuple[str, ...]


@dataclass
class _Seen:
    since: float
    stage: str = ""
    ended: bool = False
    error: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))


class Progress:
    """Remembers the last builds; safe between threads.

    :param sink: where events go on to
    :param clock: seconds, monotonic
    """

    def __init__(
        self, sink: events.Sink, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sink, self._clock = sink, clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            self._note(event)
        self._sink(event)

    def of(self, digest: str) -> Build | None:
        """The last build of a spec in this process; None if there was none lately."""
        with self._lock:
            seen = self._seen.get(digest)
            if seen is None:
                return None
            seconds = self._clock() - seen.since
            return Build(seen.stage, seconds, seen.ended, seen.error, tuple(seen.lines))

    def _note(self, event: events.Event) -> None:
        seen = self._seen.get(event.digest)
        if seen is None or (seen.ended and isinstance(event, events.StageStarted)):
            seen = self._seen[event.digest] = _Seen(self._clock())
            self._seen.move_to_end(event.digest)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        if isinstance(event, events.StageStarted):
            seen.stage, seen.since = event.stage, self._clock()
        elif isinstance(event, events.OutputLine):
            seen.lines.append(event.line[:_LINE])
        elif isinstance(event, events.BuildFinished):
            seen.ended, seen.error, seen.since = True, event.error, self._clock()
