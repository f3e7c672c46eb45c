"""Jobs that need no Apptainer, for steps of a build taken by themselves."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.model import ImageSpec

MakeJob = Callable[..., Job]
STAGES = "resolve pull payload apt conda pip post pack probe".split()


@pytest.fixture
def told() -> list[events.Event]:
    """What the jobs of a test told."""
    return []


@pytest.fixture
def make_job(tmp_path: Path, told: list[events.Event]) -> MakeJob:
    """``make_job(ImageSpec("python:3.11", "docker"), **fields of Job)``.

    Scratch is ``tmp_path/scratch``, the log ``tmp_path/log``; the events are in the
    fixture ``told``. The Apptainer is one that is not there: give ``apptainer=``.
    """

    def make(image: ImageSpec | None = None, **changes: Any) -> Job:
        scratch = changes.setdefault("scratch", tmp_path / "scratch")
        scratch.mkdir(parents=True, exist_ok=True)
        image = image or ImageSpec("python:3.11-slim", "docker")
        site = changes.setdefault("site", SiteAccess())
        transcript = Transcript(
            io.StringIO(),
            digest=image.digest,
            stages=STAGES,
            sink=told.append,
            redact=site.redact,
        )
        fields: dict[str, Any] = {
            "apptainer": Apptainer("/no/such/apptainer", "1.4.5"),
            "config": BuildConfig(timeout=60.0),
            "log": tmp_path / "log",
            "transcript": transcript,
            "cancel": threading.Event(),
            "deadline": time.monotonic() + 60,
        }
        return Job(image=image, **{**fields, **changes})

    return make
