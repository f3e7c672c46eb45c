"""What a running build says: written to its log, told as events, remembered.

Runs in the endpoint process, in the thread of the build. Understands the markers
that ``stages.sh`` prints and the few lines of Apptainer's that begin a stage.
"""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from globus_compute_apptainer import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TAIL_LINES: Final = 60

MAX_LOG_BYTES: Final = 50_000_000
"""Of a build's output; what comes later is told and remembered, but not logged."""

_PACKING: Final = re.compile(r"INFO:\s+Creating (SIF file|sandbox directory)")
_IN_A_BUILD: Final = ("apt", "post")  # of one image, by Apptainer alone
# Apptainer gives every bind twice to its inner call, then says so.
_NOISE: Final = re.compile(
    r"WARNING: While bind mounting '.*': destination is already in the mount point list"
    r"|INFO:\s+Non-gzip squashfs compression might not work"
    r"|INFO:\s+To see mksquashfs output"
    r"|INFO:\s+Running (setup|post) scriptlet"
    r"|INFO:\s+gocryptfs not found"
    r"|\+ (mkdir -p \S*rootfs|exec /bin/sh )\S*/\.gc-apptainer"
    # Adds nothing to what the command itself has said.
    r"|FATAL:.*while running %post section: exit status \d+"
)


@dataclass(frozen=True)
class Failure:
    """Why ``stages.sh`` stopped, in its own words."""

    stage: str
    code: str
    message: str


class Transcript:
    """Follows one build.

    The log is written line by line as things happen, without credentials, up to
    :data:`MAX_LOG_BYTES` of output. A sink that raises is ignored from then on.

    :param stages: that the build will enter, in order; a marker of an earlier
        stage, or of none of them, is ordinary output
    """

    def __init__(
        self,
        log: TextIO,
        *,
        digest: str,
        stages: Sequence[str],
        sink: events.Sink = events.ignore,
        redact: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._sink = log, sink
        self._digest, self._stages = digest, tuple(stages)
        self._redact, self._clock = redact, clock
        self._spent: dict[str, float] = {}
        self._since = clock()
        self._room = MAX_LOG_BYTES
        self.stage = ""
        self.command = ""
        self.failure: Failure | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def enter(self, stage: str, command: str = "") -> None:
        """A stage begins; its output starts afresh."""
        self._count()
        self._spent.setdefault(stage, 0.0)
        self.stage, self.command = stage, self._redact(command)
        self.tail.clear()
        self._write(f"=== {stage}" + (f": {self.command}" if command else ""))
        self._tell(events.StageStarted(self._digest, stage))

    def begin(self, command: str) -> None:
        """A command of the current stage begins; errors name it from here on."""
        self.command = self._redact(command)
        self.tail.clear()
        self._write_output(f"$ {self.command}")

    def note(self, text: str) -> None:
        """A remark of our own, for the log."""
        self._write_output(self._redact(text))

    def progress(
        self, done: int, total: int | None, unit: str = "bytes", what: str = ""
    ) -> None:
        """How far the current stage is; see :class:`~.events.Progress`."""
        self._tell(events.Progress(self._digest, self.stage, done, total, unit, what))

    def line(self, text: str) -> None:
        """One line of output."""
        text = self._redact(text)
        if _NOISE.match(text) or self._marker(text):
            return
        if _PACKING.match(text) and self.stage in _IN_A_BUILD:
            self.enter("pack", "mksquashfs")
        self.tail.append(text)
        self._write_output(text)
        self._tell(events.OutputLine(self._digest, text))

    def finish(self, outcome: str) -> None:
        """The last line of the log."""
        self._count()
        self.stage = ""
        self._write(f"=== {outcome}")

    def stage_seconds(self) -> Mapping[str, float]:
        """Seconds spent in every stage that was entered."""
        self._count()
        return {stage: round(seconds, 3) for stage, seconds in self._spent.items()}

    def _count(self) -> None:
        now = self._clock()
        if self.stage:
            self._spent[self.stage] += now - self._since
        self._since = now

    def _marker(self, text: str) -> bool:
        kind, _, rest = text.partition(" ")
        if kind == "@@stage" and rest == self.stage:
            pass  # entered by whoever started what says so
        elif kind == "@@stage" and self._is_ahead(rest):
            self.enter(rest)
        elif kind == "@@run":
            self.begin(rest)
        elif kind == "@@fail" and len(rest.split(" ", 2)) == 3:
            self.failure = Failure(*rest.split(" ", 2))
            self.command = ""
            self.tail.clear()
            self._write_output(self.failure.message)
        else:
            return False
        return True

    def _is_ahead(self, stage: str) -> bool:
        if stage not in self._stages:
            return False
        here = self._stages.index(self.stage) if self.stage in self._stages else -1
        return self._stages.index(stage) > here

    def _write_output(self, text: str) -> None:
        """Write what the build itself can print without end."""
        if self._room < 0:
            return
        self._room -= len(text.encode(errors="replace")) + 1
        self._write("[log truncated]" if self._room < 0 else text)

    def _write(self, text: str) -> None:
        self._log.write(text + "\n")
        self._log.flush()

    def _tell(self, event: events.Event) -> None:
        try:
            self._sink(event)
        except Exception:  # noqa: BLE001 - the listener's fault, not the build's
            self._sink = events.ignore
