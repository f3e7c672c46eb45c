"""What becomes of a build's end; Apptainer is a shell script that plays one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build import process
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.builder import Builder, Built
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec

SPEC = ImageSpec("python:3.11-slim", "docker", "3.11", pip=("a",))
BUILDS = """\
echo "INFO:    Starting build..."
echo "@@stage pip"
echo "@@run uv pip install a"
echo "INFO:    Creating SIF file..."
target=; for word; do target=$last; last=$word; done
printf 'image' >"$target"
"""
ANSWERS = """\
echo "@@python /usr/bin/python3"
echo "@@version 3.11.2"
echo "@@os Debian"
echo "@@libc glibc 2.36"
echo "@@package a==1"
echo "@@bash yes"
"""


class Stage:
    """Where a build is played: the script, the directories, what was told."""

    def __init__(self, tmp_path: Path) -> None:
        self.program = tmp_path / "apptainer"
        self.scratch = tmp_path / "scratch"
        self.scratch.mkdir()
        self.log = tmp_path / "log"
        self.told: list[events.Event] = []
        self.cancel = threading.Event()
        self.play()

    def play(self, build: str = BUILDS, answer: str = ANSWERS) -> None:
        self.program.write_text(
            f"#!/bin/sh\ncase $1 in\nbuild)\n{build};;\nexec)\n{answer};;\nesac\n"
        )
        self.program.chmod(0o755)

    def build(self, spec: ImageSpec = SPEC, **config) -> Built:
        apptainer = Apptainer(str(self.program), "1.4.5")
        builder = Builder(apptainer, BuildConfig(**config), SiteAccess())
        return builder.build(
            spec,
            scratch=self.scratch,
            log=self.log,
            sink=self.told.append,
            cancel=self.cancel,
        )

    def error(self, spec: ImageSpec = SPEC, **config) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.build(spec, **config)
        error = caught.value
        assert error.log == str(self.log)
        assert self.log.read_text().splitlines()[-1] == (
            f"=== failed in {error.stage}: {error.code}"
        )
        return error


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    return Stage(tmp_path)


def test_a_build(stage: Stage):
    built = stage.build()
    assert built.sif == stage.scratch / "image.sif"
    assert built.sif.read_text() == "image"
    assert (built.base, built.base_digest) == ("docker://python:3.11-slim", None)
    assert built.apptainer_version == "1.4.5"
    assert (built.probe.python_version, built.probe.packages) == ("3.11.2", ("a==1",))
    assert list(built.stage_seconds) == ["pull", "pip", "pack", "probe"]
    assert stage.log.read_text().endswith("=== done\n")
    entered = [e.stage for e in stage.told if isinstance(e, events.StageStarted)]
    assert entered == ["pull", "pip", "pack", "probe"]
    assert {e.digest for e in stage.told} == {SPEC.digest}
    assert sorted(p.name for p in stage.scratch.iterdir()) == ["image.def", "image.sif"]


def test_a_digest_in_the_reference_is_kept(stage: Stage):
    digest = "sha256:" + "a" * 64
    assert stage.build(ImageSpec(f"x@{digest}", "docker")).base_digest == digest


def test_a_failing_command_is_named_with_its_last_lines(stage: Stage):
    stage.play('echo "@@stage pip"; echo "@@run uv pip install a"; echo nope; exit 1')
    error = stage.error()
    assert (error.code, error.stage) == ("build-failed", "pip")
    assert (error.command, error.tail) == ("uv pip install a", ("nope",))


def test_a_known_cause_gets_code_and_hint(stage: Stage):
    stage.play("echo 'FATAL: MANIFEST_UNKNOWN: manifest unknown'; exit 255")
    error = stage.error()
    assert (error.code, error.stage) == ("base-not-found", "pull")
    assert "base_image" in error.hint


@pytest.mark.parametrize("code", ["no-python", "python-mismatch", "no-apt", "no-pip"])
def test_what_the_stages_say_themselves(stage: Stage, code: str):
    stage.play(f"echo '@@fail apt {code} so it is'; exit 1")
    error = stage.error()
    assert (error.code, error.stage) == (code, "apt")
    assert "so it is" in error.message
    assert error.hint


def test_timeout(stage: Stage):
    stage.play("echo '@@stage pip'; echo here; sleep 1000")
    error = stage.error(timeout=0.5)
    assert (error.code, error.stage, error.tail) == ("build-timeout", "pip", ("here",))


def test_time_is_counted_over_the_whole_build(stage: Stage):
    stage.play(answer="sleep 1000")
    assert (error := stage.error(timeout=1.0)).code == "build-timeout"
    assert error.stage == "probe"


def test_cancel(stage: Stage):
    stage.cancel.set()
    stage.play("sleep 1000")
    assert stage.error().code == "build-cancelled"


def test_an_image_that_is_too_large(stage: Stage):
    error = stage.error(max_image_size=4)
    assert (error.code, error.stage) == ("image-too-large", "policy")
    assert stage.build(max_image_size=5)


def test_an_image_that_does_not_start(stage: Stage):
    stage.play(answer="echo FATAL: no; exit 255")
    error = stage.error()
    assert (error.stage, error.tail) == ("probe", ("FATAL: no",))


def test_an_image_that_does_not_answer(stage: Stage):
    stage.play(answer="echo hello")
    assert "does not answer" in stage.error().message


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            "echo '@@python /p'; echo '@@version 3.1.1'; echo '@@bash no'",
            "python-mismatch",
        ),
        ("echo '@@bash no'", "no-python"),
    ],
)
def test_the_probe_has_the_last_word_on_python(stage: Stage, answer: str, code: str):
    stage.play(answer=answer)
    assert stage.error().code == code


def test_a_scratch_that_cannot_be_written_is_a_build_error(stage: Stage):
    stage.scratch.rmdir()
    stage.scratch.write_text("a file")
    with pytest.raises(BuildError) as caught:
        stage.build()
    assert caught.value.stage == "resolve"
