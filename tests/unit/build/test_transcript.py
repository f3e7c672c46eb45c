"""From lines of output to stages, commands, causes and times."""

from __future__ import annotations

import io

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.transcript import (
    MAX_LOG_BYTES,
    TAIL_LINES,
    Failure,
    Transcript,
)

STAGES = ("pull", "apt", "pip", "pack", "probe")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def told() -> list[events.Event]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def transcript(log, told, clock) -> Transcript:
    return Transcript(
        log,
        digest="sha256:x",
        stages=STAGES,
        sink=told.append,
        redact=lambda text: text.replace("s3cret", "****"),
        clock=clock,
    )


def test_a_build_from_start_to_end(transcript, log, told, clock):
    transcript.enter("pull", "apptainer build")
    transcript.line("INFO:    Fetching OCI image...")
    clock.now = 5.0
    transcript.line("@@stage apt")
    transcript.line("@@run apt-get install x")
    transcript.line("Setting up x")
    clock.now = 7.5
    transcript.line("INFO:    Creating SIF file...")
    clock.now = 9.0
    transcript.finish("done")
    clock.now = 100.0
    assert transcript.stage_seconds() == {"pull": 5.0, "apt": 2.5, "pack": 1.5}
    assert log.getvalue() == (
        "=== pull: apptainer build\nINFO:    Fetching OCI image...\n"
        "=== apt\n$ apt-get install x\nSetting up x\n"
        "=== pack: mksquashfs\nINFO:    Creating SIF file...\n=== done\n"
    )
    assert told == [
        events.StageStarted("sha256:x", "pull"),
        events.OutputLine("sha256:x", "INFO:    Fetching OCI image..."),
        events.StageStarted("sha256:x", "apt"),
        events.OutputLine("sha256:x", "Setting up x"),
        events.StageStarted("sha256:x", "pack"),
        events.OutputLine("sha256:x", "INFO:    Creating SIF file..."),
    ]


def test_the_tail_is_of_the_last_command_and_bounded(transcript):
    transcript.line("@@stage apt")
    transcript.line("@@run apt-get update")
    transcript.line("Get:1")
    transcript.line("@@run apt-get install x")
    assert (transcript.command, list(transcript.tail)) == ("apt-get install x", [])
    for number in range(100):
        transcript.line(str(number))
    assert list(transcript.tail) == [str(n) for n in range(100 - TAIL_LINES, 100)]


def test_stages_only_go_forward(transcript):
    transcript.line("@@stage pip")
    transcript.line("@@stage apt")
    transcript.line("@@stage nonsense")
    assert transcript.stage == "pip"
    assert list(transcript.tail) == ["@@stage apt", "@@stage nonsense"]
    transcript.enter("probe")
    transcript.line("INFO:    Creating SIF file...")
    assert transcript.stage == "probe"


def test_why_it_stopped(transcript, log):
    transcript.line("@@run something")
    transcript.line("@@fail pip no-python the base image has no Python")
    assert transcript.failure == Failure(
        "pip", "no-python", "the base image has no Python"
    )
    assert (transcript.command, list(transcript.tail)) == ("", [])
    assert "the base image has no Python" in log.getvalue()


@pytest.mark.parametrize("line", ["@@fail pip", "@@fail", "@@other x", "@@"])
def test_other_marks_are_output(transcript, line):
    transcript.line(line)
    assert transcript.failure is None
    assert list(transcript.tail) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: While bind mounting '/a:/b': destination is already in the mount "
        "point list",
        "+ mkdir -p /dev/shm/x/tmp/build-temp-1/rootfs/.gc-apptainer",
        "+ exec /bin/sh /.gc-apptainer/stages.sh",
        "FATAL:   While performing build: while running engine: while running %post "
        "section: exit status 100",
    ],
)
def test_noise_is_left_out(transcript, told, line):
    transcript.line(line)
    assert not transcript.tail
    assert not told


def test_a_signal_is_no_noise(transcript):
    line = "FATAL:   While performing build: while running %post section: signal: k"
    transcript.line(line)
    assert list(transcript.tail) == [line]


def test_secrets_reach_neither_log_nor_events_nor_error(transcript, log, told):
    transcript.enter("pull", "from s3cret")
    transcript.line("@@run with s3cret")
    transcript.line("says s3cret")
    transcript.line("@@fail pip no-python s3cret")
    everything = f"{log.getvalue()} {told} {transcript.failure} {transcript.command}"
    assert "s3cret" not in everything
    assert "****" in everything


def test_each_line_is_in_the_log_at_once(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as file:
        Transcript(file, digest="x", stages=STAGES).line("now")
        assert path.read_text() == "now\n"


def test_a_sink_that_raises_is_not_called_again(log):
    calls: list[events.Event] = []

    def sink(event: events.Event) -> None:
        calls.append(event)
        raise RuntimeError

    transcript = Transcript(log, digest="x", stages=STAGES, sink=sink)
    transcript.line("one")
    transcript.line("two")
    assert len(calls) == 1
    assert log.getvalue() == "one\ntwo\n"


def test_the_log_is_bounded_and_the_rest_goes_on(transcript, log, told, monkeypatch):
    monkeypatch.setattr(transcript, "_room", 100)
    transcript.enter("pull")
    for _ in range(1000):
        transcript.line("y")
        transcript.line("@@run y")
    transcript.line("@@stage pip")
    transcript.line("the last é")
    transcript.finish("failed in pip: build-failed")
    lines = log.getvalue().splitlines()
    assert lines[-3:] == [
        "[log truncated]",
        "=== pip",
        "=== failed in pip: build-failed",
    ]
    assert len(log.getvalue()) < 200
    assert list(transcript.tail) == ["the last é"]
    assert told[-1] == events.OutputLine("sha256:x", "the last é")


def test_a_log_has_a_bound():
    transcript = Transcript(io.StringIO(), digest="x", stages=STAGES)
    assert transcript._room == MAX_LOG_BYTES
