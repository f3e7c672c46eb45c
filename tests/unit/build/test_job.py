"""How the steps of a build run programs, and what becomes of their ends."""

from __future__ import annotations

import os
import threading
import time

import pytest

from globus_compute_apptainer.build import process
from globus_compute_apptainer.build.process import Completed
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


@pytest.fixture
def env() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)


def failure(job, script: str, env: dict[str, str], **how) -> BuildError:
    with pytest.raises(BuildError) as caught:
        job.run(sh(script), env=env, **how)
    assert caught.value.log == str(job.log)
    return caught.value


def test_a_good_end_says_nothing(make_job, env) -> None:
    job = make_job()
    job.enter("pip")
    assert job.run(sh("echo fine"), env=env).ok
    assert list(job.transcript.tail) == ["fine"]


def test_a_failing_command_is_named_with_its_last_lines(make_job, env) -> None:
    job = make_job()
    job.enter("pip")
    job.transcript.line("of an earlier command")
    error = failure(job, "echo nope; exit 1", env, shown="uv pip install a")
    assert (error.code, error.stage) == ("build-failed", "pip")
    assert (error.command, error.tail) == ("uv pip install a", ("nope",))


def test_a_known_cause_gets_code_and_hint(make_job, env) -> None:
    job = make_job()
    job.enter("pull")
    error = failure(job, "echo MANIFEST_UNKNOWN: manifest unknown; exit 1", env)
    assert (error.code, error.stage) == ("base-not-found", "pull")
    assert "base_image" in error.hint


def test_what_a_script_says_itself_comes_first(make_job, env) -> None:
    job = make_job()
    job.enter("apt")
    error = failure(job, "echo '@@fail apt no-apt there is no apt-get'; exit 1", env)
    assert (error.code, error.stage) == ("no-apt", "apt")
    assert "there is no apt-get" in error.message
    assert "Debian family" in error.hint


def test_a_program_that_fails_may_be_the_callers_to_judge(make_job, env) -> None:
    job = make_job()
    job.enter("pip")
    ended = job.attempt(sh("exit 7"), env=env)
    assert ended.returncode == 7
    with pytest.raises(BuildError):
        job.judge(ended)


def test_the_time_is_the_builds_and_not_the_steps(make_job, env) -> None:
    job = make_job(config=BuildConfig(timeout=0.2), deadline=time.monotonic() + 0.2)
    job.enter("post")
    error = failure(job, "exec sleep 60", env)
    assert (error.code, error.stage) == ("build-timeout", "post")
    assert job.left() == 0
    with pytest.raises(BuildError, match="longer than"):
        job.run(sh("true"), env=env)


def test_a_cancelled_build_runs_nothing_more(make_job, env) -> None:
    job = make_job()
    job.enter("apt")
    job.cancel.set()
    for attempt in (
        job.check,
        lambda: job.run(sh("true"), env=env),
        lambda: job.judge(Completed(-15, 1.0, cancelled=True)),
    ):
        with pytest.raises(BuildError) as caught:
            attempt()
        assert caught.value.code == "build-cancelled"


def test_cancelling_ends_what_runs(make_job, env) -> None:
    job = make_job()
    job.enter("post")
    started = threading.Event()

    def cancel_then(line: str) -> None:
        started.set()
        job.cancel.set()

    error = failure(job, "echo on; exec sleep 60", env, on_line=cancel_then)
    assert started.is_set()
    assert error.code == "build-cancelled"


def test_an_error_carries_the_stage_it_is_about(make_job) -> None:
    job = make_job(ImageSpec("x", "docker"))
    job.enter("pack")
    assert job.error("too large", code="image-too-large", stage="policy").stage == (
        "policy"
    )
    assert job.error("oh").stage == "pack"


def test_what_was_begun_beside_is_done_when_the_job_has_settled(make_job):
    job, gate, done = make_job(), threading.Event(), []

    def later() -> None:
        gate.wait(30)
        done.append(threading.current_thread())

    job.beside(later, "later")
    assert done == []
    gate.set()
    job.settle()
    assert done != [threading.current_thread()]


def test_without_threads_it_is_done_at_once(make_job, monkeypatch):
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    job, done = make_job(), []
    monkeypatch.setattr(threading.Thread, "start", refused)
    job.beside(lambda: done.append(1), "now")
    assert done == [1]
