"""A builder that needs no Apptainer, for tests of what happens around builds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.builder import Built
from globus_compute_apptainer.build.probe import Probe
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec


class FakeBuilder:
    """Builds at once, when its gate is open; counts; fails when told to."""

    def __init__(self) -> None:
        self.builds: list[str] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def build(
        self,
        image: ImageSpec,
        *,
        scratch: Path,
        log: Path,
        sink: events.Sink,
        cancel: threading.Event,
    ) -> Built:
        self.builds.append(image.digest)
        self.begun.set()
        while not self.gate.wait(0.01):
            if cancel.is_set():
                raise BuildError("cancelled", code="build-cancelled")
        if self.error is not None:
            raise self.error
        sif = scratch / "image.sif"
        sif.write_bytes(b"not a real image: " + image.canonical())
        probe = Probe("/usr/bin/python3", "3.11.2", "Fake Linux", "glibc", (), True)
        return Built(sif, image.base_image, None, probe, {"pip": 0.1}, "1.4.5")


@pytest.fixture
def builder() -> FakeBuilder:
    return FakeBuilder()
