"""What a person sees of a build, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.cli.progress import Progress, far


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch) -> Iterator[None]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    yield


def build(progress: Progress, clock: Clock, error: str = "") -> None:
    with progress:
        progress(events.StageStarted("sha256:0", "pull"))
        clock.now += 2
        progress(events.OutputLine("sha256:0", "Copying [bold]blob[/] " + "x" * 200))
        progress(events.StageStarted("sha256:0", "pip"))
        clock.now += 3
        progress(events.BuildFinished("sha256:0", 5.0, error))


def test_a_log_has_one_line_per_stage(clock: Clock) -> None:
    stream = io.StringIO()
    build(Progress(stream=stream, clock=clock), clock)
    assert stream.getvalue() == "[   0.0 s] pull\n[   2.0 s] pip\n"


def test_a_verbose_log_has_the_output_as_it_is(clock: Clock) -> None:
    stream = io.StringIO()
    build(Progress(stream=stream, clock=clock, verbose=True), clock)
    assert "  | Copying [bold]blob[/] " + "x" * 200 + "\n" in stream.getvalue()


def test_a_quiet_log_is_empty(clock: Clock) -> None:
    stream = io.StringIO()
    build(Progress(stream=stream, clock=clock, quiet=True), clock)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("error", "sign"), [("", "✓"), ("build-failed", "✗")])
def test_a_terminal_keeps_the_stages_that_ended(clock, error, sign) -> None:
    stream = Terminal()
    build(Progress(stream=stream, clock=clock, quiet=True), clock, error)
    text = stream.getvalue()
    assert "pull" in text
    assert "2.0 s" in text
    assert sign in text
    assert "3.0 s" in text


def test_a_terminal_shows_the_last_line_of_output_cut_to_its_width(clock) -> None:
    stream = Terminal()
    progress = Progress(stream=stream, clock=clock)
    progress(events.StageStarted("sha256:0", "pip"))
    progress(events.OutputLine("sha256:0", "Downloading [red] " + "y" * 200))
    clock.now += 7
    progress._console.print(progress._render())
    (line,) = [row for row in stream.getvalue().splitlines() if "Downloading" in row]
    assert "pip" in line
    assert "7.0 s" in line
    assert "Downloading [red] y" in line
    assert "y" * 81 not in line


@pytest.mark.parametrize(
    ("done", "total", "unit", "words"),
    [
        (12_000_000, 87_000_000, "bytes", "12 MB of 87 MB"),
        (12_000_000, None, "bytes", "12 MB"),
        (3, 17, "packages", "3 of 17 packages"),
        (0, 0, "packages", "0 of 0 packages"),
    ],
)
def test_how_far_a_stage_is_in_words(done, total, unit, words) -> None:
    assert far(events.Progress("sha256:0", "pull", done, total, unit)) == words


def test_a_log_has_a_line_every_few_seconds_of_what_takes_long(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    progress(events.StageStarted("sha256:0", "pull"))
    for done in range(12):
        clock.now += 1
        progress(events.Progress("sha256:0", "pull", done, 12, "packages"))
    assert stream.getvalue() == (
        "[   0.0 s] pull\n"
        "[   5.0 s] pull    4 of 12 packages\n"
        "[  10.0 s] pull    9 of 12 packages\n"
    )


def test_a_terminal_shows_how_far_the_current_stage_is(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream=stream, clock=clock)
    progress(events.StageStarted("sha256:0", "pull"))
    progress(events.Progress("sha256:0", "pull", 12_000_000, None, "bytes"))
    progress._console.print(progress._render())
    progress(events.StageStarted("sha256:0", "pip"))
    progress._console.print(progress._render())
    rows = [row for row in stream.getvalue().splitlines() if " s " in row]
    assert ["12 MB" in row for row in rows] == [True, False]


def test_an_event_of_another_kind_disturbs_nothing(clock: Clock) -> None:
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress(object())  # type: ignore[arg-type]


def test_a_log_says_what_is_waited_for_if_it_is_to_be_told(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    progress.waiting("the worker starts")
    progress.waiting("Python's bytecode is compiled", tell=True)
    assert stream.getvalue().endswith(" s] Python's bytecode is compiled\n")
    assert "worker" not in stream.getvalue()


def test_what_is_waited_for_is_shown_between_builds(clock) -> None:
    stream = Terminal()
    progress = Progress(stream=stream, clock=clock)
    progress.waiting("the worker starts")
    progress._console.print(progress._render())
    assert "the worker starts" in stream.getvalue()
