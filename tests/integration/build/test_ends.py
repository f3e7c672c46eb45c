"""Builds that are ended: by time, by request, by SIGKILL. Nothing may be left."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.store.cache import Store

pytestmark = pytest.mark.apptainer


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def running(mark: str) -> list[str]:
    """Command lines, of anybody, that hold ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if mark in text and path.parent.name != str(os.getpid()):
            found.append(text.replace("\0", " "))
    return found


@pytest.fixture
def mark() -> str:
    """A number of seconds that no other process sleeps."""
    return f"{10000 + secrets.randbelow(80000)}.{secrets.randbelow(10**9):09}"


@pytest.fixture
def sleepers(mark: str) -> tuple[str, ...]:
    """``post`` lines that start processes, one in a session of its own."""
    return (
        f"sleep {mark} &",
        f"setsid sh -c 'trap : TERM; sleep {mark}; sleep {mark}' &",
        "mkdir -p /kept/inner; chown -R 42:42 /kept; chmod 700 /kept",
        "echo sleeping",
        f"sleep {mark}",
    )


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_timeout_leaves_nothing(workshop, tmp_path, mark, sleepers, place):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seconds = 20.0
    config = workshop.config(
        timeout=seconds, tmp_dir=scratch if place == "disk" else None
    )
    error = workshop.error(config=config, post=sleepers)
    assert (error.code, error.stage) == ("build-timeout", "post")
    assert f"{seconds:g} s" in error.message
    assert "sleeping" in error.tail
    wait_for(lambda: running(mark) == [])
    assert list(scratch.iterdir()) == []


def test_cancel_leaves_no_process(workshop, mark, sleepers):
    def sink(event: events.Event) -> None:
        if isinstance(event, events.OutputLine) and event.line == "sleeping":
            workshop.cancel.set()

    workshop.sink = sink
    error = workshop.error(post=sleepers)
    assert (error.code, error.stage) == ("build-cancelled", "post")
    wait_for(lambda: running(mark) == [])


BUILD_AND_SAY_SO = """\
import os, sys
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.images import open_service
from globus_compute_apptainer.spec.model import ImageSpec
registry, cache, scratch, *post = sys.argv[1:]
build = {"http_registries": [registry], "tmp_dir": scratch}
config = ContainersConfig.parse({"cache_dir": cache, "build": build})
image = ImageSpec(f"{registry}/python:3.11-slim", "docker", post=tuple(post))
open_service(config, os.environ).request(image).result()
"""


def test_what_sigkill_leaves_is_swept(workshop, registry, tmp_path, mark, sleepers):
    """Also files of sub-ids, which a user cannot remove as such."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cache = tmp_path / "cache"
    argv = [sys.executable, "-c", BUILD_AND_SAY_SO, registry, str(cache), str(scratch)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    builder = subprocess.Popen([*argv, *sleepers], env=env)
    try:
        wait_for(lambda: len(running(f"sleep\0{mark}")) >= 3)
    finally:
        builder.kill()
        builder.wait()
    (left,) = scratch.iterdir()
    assert list(left.rglob("kept"))
    for line in Path("/proc").glob("[0-9]*/cmdline"):  # the orphans of that build
        try:
            if mark in line.read_text():
                os.kill(int(line.parent.name), signal.SIGKILL)
        except OSError:
            continue
    wait_for(lambda: running(mark) == [])
    with private_scratch(BuildConfig(tmp_dir=scratch)) as fresh:
        assert list(scratch.iterdir()) == [fresh]
    assert list(scratch.iterdir()) == []
    Store(cache).prepare()
    assert list((cache / "v2/tmp").iterdir()) == []
