"""Shows a build while it runs: a live line on a terminal, plain lines elsewhere.

Runs in ``gc-apptainer`` and the demo. A :class:`Progress` is a sink of events; it is
called from the builds' threads and writes to standard error only. Bytes and packages
are told beside the current stage where the build tells them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from globus_compute_apptainer import events
from globus_compute_apptainer.cli import output

_PER_SECOND = 8
_LINE_SECONDS = 5.0
"""Without a terminal: at most one line of progress in this time."""


class Progress:
    """What a build does now, for people; a context manager.

    Stages that ended stay on the screen with their seconds; the current one has a
    live line with how far it is and the last line of output. Without a terminal there
    is one line for each stage that begins, and one every few seconds of what takes
    longer.

    :param verbose: every line of output is shown too
    :param quiet: nothing is shown, unless it goes to a terminal
    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        quiet: bool = False,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._quiet = quiet and not self._console.is_terminal
        self._verbose, self._clock = verbose, clock
        self._lock = threading.Lock()
        self._stage, self._line, self._far = "", "", ""
        self._began = self._stage_began = self._told = clock()
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: events.Event) -> None:
        """The sink."""
        with self._lock:
            if isinstance(event, events.StageStarted):
                self._enter(event.stage)
            elif isinstance(event, events.OutputLine):
                self._line = event.line.strip() or self._line
                if self._verbose:
                    self._print(Text(f"  | {event.line}", style="dim"))
            elif isinstance(event, events.Progress):
                self._advance(event)
            elif isinstance(event, events.BuildFinished):
                self._leave(failed=bool(event.error))
                self._stage, self._far, self._stage_began = "", "", self._clock()
                self._line = "" if event.error else "the image is ready"

    def say(self, text: str) -> None:
        """A line of one's own, above the live one."""
        with self._lock:
            self._print(Text(text))

    def waiting(self, for_what: str, *, tell: bool = False) -> None:
        """What is waited for until the next stage begins.

        :param tell: without a terminal, too
        """
        with self._lock:
            self._stage, self._line, self._far = "", for_what, ""
            self._stage_began = self._clock()
            if tell and not self._console.is_terminal:
                self._print(Text(f"[{self._clock() - self._began:6.1f} s] {for_what}"))

    def _enter(self, stage: str) -> None:
        self._leave(failed=False)
        self._stage, self._line, self._far = stage, "", ""
        self._stage_began = self._told = self._clock()
        if not self._console.is_terminal:
            self._print(Text(f"[{self._clock() - self._began:6.1f} s] {stage}"))

    def _advance(self, event: events.Progress) -> None:
        self._far = far(event)
        now = self._clock()
        if self._console.is_terminal or now - self._told < _LINE_SECONDS:
            return
        self._told = now
        self._print(Text(f"[{now - self._began:6.1f} s] {event.stage:8}{self._far}"))

    def _leave(self, *, failed: bool) -> None:
        if not self._stage or not self._console.is_terminal:
            return
        sign, style = ("✗", "red") if failed else ("✓", "green")
        seconds = self._clock() - self._stage_began
        self._print(Text.assemble((sign, style), f" {self._stage:8}{seconds:7.1f} s"))

    def _print(self, text: Text) -> None:
        if not self._quiet:
            self._console.print(text, soft_wrap=True)

    def _render(self) -> Table:
        seconds = self._clock() - self._stage_began
        row = Table.grid(padding=(0, 1), expand=True)
        for _ in range(4):
            row.add_column(no_wrap=True)
        row.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        stage = f"{self._stage or 'waiting':8}"
        row.add_row(
            self._spinner,
            stage,
            f"{seconds:6.1f} s",
            Text(self._far),
            Text(self._line, style="dim"),
        )
        return row


def far(event: events.Progress) -> str:
    """How far a stage is, in words: ``12 MB of 87 MB``, ``3 of 17 packages``."""
    done, total = _amount(event.done, event), ""
    if event.total is not None:
        total = f" of {_amount(event.total, event)}"
    unit = "" if event.unit == "bytes" else f" {event.unit}"
    return f"{done}{total}{unit}"


def _amount(count: int, event: events.Progress) -> str:
    return output.size(count) if event.unit == "bytes" else str(count)
