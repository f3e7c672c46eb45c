"""Bytecode follows in the background, once, and its failure harms nobody."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.layer import Layer, layer_key
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store

SPEC = model.parse({"base_image": "python:3.11-slim", "pip": ["pandas"]})
IMAGE = SPEC.image_spec(default_base="docker://x", python="3.11")


def layer(kind: str, folder: Path) -> Layer:
    file = folder / f"{kind}.sqfs"
    file.write_bytes(b"not a real layer")
    return Layer(kind, layer_key(kind), file)


def make_service(tmp_path: Path, builder: Any) -> ImageService:
    config = BuildConfig(tmp_dir=tmp_path)
    return ImageService(Store(tmp_path / "cache"), lambda: builder, config)


@pytest.fixture
def service(tmp_path: Path, builder: Any):
    builder.layers = (layer("pip", tmp_path),)
    made = make_service(tmp_path, builder)
    yield made
    made.close()


def test_it_is_beside_the_image_once_it_is_settled(service, builder) -> None:
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert ready.image.bytecode is not None
    assert ready.image.bytecode.read_bytes() == b"not real bytecode"
    assert builder.compiled == [ready.image.path]
    assert service.cached(IMAGE.digest).image.bytecode == ready.image.bytecode


def test_an_image_without_python_packages_needs_none(service, builder) -> None:
    builder.layers = ()
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert builder.compiled == []
    assert ready.image.bytecode is None


def test_an_image_with_layers_that_hold_theirs_needs_none(
    service, builder, tmp_path
) -> None:
    builder.layers = (replace(layer("pip", tmp_path), lock={"bytecode": True}),)
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert builder.compiled == []
    assert ready.image.bytecode is None
    assert ready.image.manifest.layers[0]["bytecode"] is True


def test_what_lies_over_such_layers_is_compiled(service, builder, tmp_path) -> None:
    known = replace(layer("pip", tmp_path), lock={"bytecode": True})
    builder.layers = (layer("apt", tmp_path), known, layer("post", tmp_path))
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert builder.compiled == [ready.image.path]


def test_what_a_process_left_incomplete_the_next_one_completes(
    service, builder, tmp_path
) -> None:
    builder.compile_error = BuildError("no room")
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert ready.image.bytecode is None
    builder.compile_error = None
    assert service.cached(IMAGE.digest) is not None
    service.settle()
    assert len(builder.compiled) == 1, "not again in this process"
    later = make_service(tmp_path, builder)
    later.cached(IMAGE.digest)
    later.settle()
    later.close()
    assert ready.image.bytecode is not None


def test_closing_does_not_wait_for_what_has_not_begun(tmp_path, builder) -> None:
    begun, gate = threading.Event(), threading.Event()

    class Slow(type(builder)):
        def compile_bytecode(self, *args, cancel, **kwargs):
            begun.set()
            assert gate.wait(30)
            return super().compile_bytecode(*args, cancel=cancel, **kwargs)

    slow = Slow()
    slow.layers = (layer("pip", tmp_path),)
    service = make_service(tmp_path, slow)
    other = model.parse({"base_image": "python:3.11-slim", "pip": ["numpy"]})
    service.request(IMAGE).result(30)
    service.request(other.image_spec(default_base="x", python="3.11")).result(30)
    assert begun.wait(10)
    closing = threading.Thread(target=service.close)
    closing.start()
    gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert len(slow.compiled) == 1


class Early:
    """What compiles the layers of an image in the making."""

    def __init__(self, *, works: bool = True) -> None:
        self.works = works
        self.begun, self.gate = threading.Event(), threading.Event()
        self.cancels: list[threading.Event] = []
        self.places: list[Path] = []

    def __call__(self, target: Path, scratch: Path, cancel: threading.Event) -> bool:
        self.cancels.append(cancel)
        self.places += [target, scratch]
        self.begun.set()
        while not self.gate.wait(0.01):
            if cancel.is_set():
                return False
        if self.works:
            target.write_bytes(b"early bytecode")
        return self.works

    def left(self) -> list[Path]:
        return [path for path in self.places if path.parent.exists()]


@pytest.fixture
def early(builder) -> Early:
    builder.early = Early()
    return builder.early


def leftovers(tmp_path: Path) -> list[Path]:
    found = [*tmp_path.glob("cache/*/tmp/*"), *tmp_path.glob("gc-apptainer-build*")]
    return [path for path in found if path.is_dir()]


def test_it_is_begun_with_while_the_image_is_made(service, builder, early) -> None:
    early.gate.set()
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert ready.image.bytecode.read_bytes() == b"early bytecode"
    assert builder.compiled == []


def test_an_image_is_ready_before_its_bytecode(service, early, tmp_path) -> None:
    ready = service.request(IMAGE).result(30)
    assert early.begun.wait(30)
    assert ready.image.bytecode is None
    early.gate.set()
    service.settle()
    assert ready.image.bytecode is not None
    assert leftovers(tmp_path) == []


def test_what_could_not_be_compiled_early_is_compiled_after(
    service, builder, early
) -> None:
    early.works = False
    early.gate.set()
    ready = service.request(IMAGE).result(30)
    service.settle()
    assert ready.image.bytecode.read_bytes() == b"not real bytecode"


def test_it_ends_with_a_build_that_fails(tmp_path, builder, early) -> None:
    class Failing(type(builder)):
        def build(self, *args, layered, **kwargs):
            layered(early)
            assert early.begun.wait(30)
            raise BuildError("no")

    service = make_service(tmp_path, Failing())
    with pytest.raises(BuildError):
        service.request(IMAGE).result(30)
    deadline = time.monotonic() + 60
    while leftovers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert early.cancels[0].is_set()
    assert leftovers(tmp_path) == []
    service.close()


def test_closing_ends_it(service, early, tmp_path) -> None:
    service.request(IMAGE).result(30)
    assert early.begun.wait(30)
    closing = threading.Thread(target=service.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert early.cancels[0].is_set()
    assert leftovers(tmp_path) == []


def test_a_flat_image_gets_none_though_it_was_begun(tmp_path, builder, early) -> None:
    early.gate.set()
    service = make_service(tmp_path, builder)
    builder.layers = ()
    ready = service.request(IMAGE).result(30)
    service.settle()
    service.close()
    assert ready.image.bytecode is None
    assert leftovers(tmp_path) == []
