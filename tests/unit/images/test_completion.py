"""Bytecode follows in the background, once, and its failure harms nobody."""

from __future__ import annotations

import threading
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
