"""A builder that needs no Apptainer, for tests of what happens around builds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.order import Built, Compile, Order, Place
from globus_compute_apptainer.build.probe import Probe
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.pieces import Known
from globus_compute_apptainer.store.index import SIF_MAGIC, SIF_MAGIC_AT

SIF = b"\0" * SIF_MAGIC_AT + SIF_MAGIC


class FakeBuilder:
    """Builds at once, when its gate is open; counts; fails when told to."""

    def __init__(self) -> None:
        self.builds: list[str] = []
        self.orders: list[Order] = []
        self.layers: tuple[Layer, ...] = ()
        self.compiled: list[Path] = []
        self.early: Compile | None = None
        self.error: Exception | None = None
        self.compile_error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.cancel = threading.Event()

    def build(
        self,
        order: Order,
        place: Place,
        *,
        sink: events.Sink,
        cancel: threading.Event,
        finished: Callable[[Known], None],
        layered: Callable[[Compile], None],
    ) -> Built:
        image = order.image
        self.orders.append(order)
        self.builds.append(image.digest)
        self.cancel = cancel
        self.begun.set()
        while not self.gate.wait(0.01):
            if cancel.is_set():
                raise BuildError("cancelled", code="build-cancelled")
        if self.error is not None:
            raise self.error
        text = (
            SIF + b"not a real image: " + image.canonical() + b"%d" % len(self.builds)
        )
        if self.early is not None:
            layered(self.early)
        place.target.write_bytes(text)
        finished(())
        probe = Probe("/usr/bin/python3", "3.11.2", "Fake Linux", "glibc", (), True)
        return Built(
            base=image.base_image,
            base_digest="sha256:" + "b" * 64,
            probe=probe,
            layers=self.layers,
            markers=(),
            reason="",
            start=None,
            lock={},
            stage_seconds={"pip": 0.1},
            apptainer_version="1.4.5",
        )

    def compile_bytecode(
        self,
        image: Path,
        python: str,
        target: Path,
        *,
        scratch: Path,
        cancel: threading.Event,
    ) -> bool:
        self.compiled.append(image)
        if self.compile_error is not None:
            raise self.compile_error
        target.write_bytes(b"not real bytecode")
        return True


@pytest.fixture
def builder() -> FakeBuilder:
    return FakeBuilder()
