"""Layers are made once and kept; files are copied as they are."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.build import layers
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.build.layer import (
    Layer,
    lacks_bytecode,
    layer_key,
    marker,
    place_marker,
)
from globus_compute_apptainer.build.layers import Below, copy_file, kept_layer
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.store.shelf import Shelf

INVENTORY = Inventory("", "debian", "glibc", "2.36", "x86_64", "/bin", has_bash=True)
KEY = layer_key("pip", lock=["a==1"])


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "v2", "layers")


class Maker:
    """Makes layers that are different every time."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, workspace: Path) -> dict[str, int]:
        self.made += 1
        (workspace / layers.LAYER_FILE).write_text(f"layer {self.made}")
        return {"number": self.made}


def test_a_layer_is_made_once(make_job, shelf) -> None:
    make = Maker()
    first = kept_layer(make_job(), shelf, "pip", KEY, make)
    assert kept_layer(make_job(), shelf, "pip", KEY, make) == first
    assert make.made == 1
    assert first.file.read_text() == "layer 1"
    assert first.lock == {"number": 1}


def test_a_fresh_build_makes_it_again(make_job, shelf) -> None:
    make = Maker()
    kept_layer(make_job(), shelf, "pip", KEY, make)
    again = kept_layer(make_job(fresh=True), shelf, "pip", KEY, make)
    assert again.file.read_text() == "layer 2"
    assert kept_layer(make_job(), shelf, "pip", KEY, make).lock == {"number": 2}


def test_a_fresh_build_takes_nothing_away_from_another(make_job, shelf) -> None:
    make = Maker()
    first = kept_layer(make_job(), shelf, "pip", KEY, make)
    for _ in range(2):
        kept_layer(make_job(fresh=True), shelf, "pip", KEY, make)
    assert first.file.read_text() == "layer 1"
    assert kept_layer(make_job(), shelf, "pip", KEY, make).lock == {"number": 3}


def test_what_was_made_on_a_layer_is_not_laid_on_a_fresh_one(make_job, shelf) -> None:
    make = Maker()
    first = kept_layer(make_job(), shelf, "pip", KEY, make)
    again = kept_layer(make_job(fresh=True), shelf, "pip", KEY, make)
    below = Below("sha256:b", Path("/base.sif"), INVENTORY, (first,))
    assert replace(below, layers=(again,)).keys != below.keys
    assert again.marker == first.marker, "as the maker was told"
    assert kept_layer(make_job(), shelf, "pip", KEY, make) == again


def test_threads_that_need_the_same_layer_make_one(make_job, shelf) -> None:
    make, start = Maker(), threading.Barrier(8)
    jobs = [make_job() for _ in range(8)]
    got: list[Layer] = []

    def build(job) -> None:
        start.wait()
        got.append(kept_layer(job, shelf, "pip", KEY, make))

    threads = [threading.Thread(target=build, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.made == 1
    assert len(got) == 8
    assert len({layer.file for layer in got}) == 1


def test_a_failure_leaves_nothing(make_job, shelf, tmp_path) -> None:
    def fail(workspace: Path) -> dict[str, int]:
        (workspace / layers.LAYER_FILE).write_text("half")
        raise BuildError("no")

    with pytest.raises(BuildError):
        kept_layer(make_job(), shelf, "pip", KEY, fail)
    assert shelf.find(KEY) is None
    assert not list((tmp_path / "v2/tmp").iterdir())


def test_the_key_is_of_everything_it_is_made_of() -> None:
    assert layer_key("pip", lock=["a==1"]) == KEY
    assert layer_key("pip", lock=["a==2"]) != KEY
    assert layer_key("apt", lock=["a==1"]) != KEY


def test_the_marker_is_named_by_the_key(tmp_path) -> None:
    place_marker(tmp_path, KEY)
    assert (tmp_path / marker(KEY).lstrip("/")).exists()
    assert marker(KEY).rpartition("/")[2] == KEY.removeprefix("sha256:")[:32]


def test_the_topmost_layer_is_named_last() -> None:
    low, high = (Layer(k, KEY, Path(f"/{k}.sqfs")) for k in ("apt", "pip"))
    below = Below("sha256:b", Path("/base.sif"), INVENTORY, (low, high))
    options = ["--overlay", "/apt.sqfs:ro", "--overlay", "/pip.sqfs:ro"]
    assert below.overlays == options
    assert replace(below, layers=()).overlays == []


def test_a_copy_is_the_same_also_between_file_systems(tmp_path, monkeypatch) -> None:
    source, pieces = tmp_path / "a", []
    source.write_bytes(bytes(range(256)) * 5000)
    monkeypatch.setattr(layers, "COPY_BYTES", 300_000)
    copy_file(source, tmp_path / "b", lambda: pieces.append(1))
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert len(pieces) > 1
    other = Path("/dev/shm", f"gc-apptainer-copy-{tmp_path.name}")
    try:
        copy_file(source, other, lambda: None)
        assert other.read_bytes() == source.read_bytes()
    finally:
        other.unlink()


def test_a_copy_can_be_ended(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)

    def stop() -> None:
        raise BuildError("cancelled")

    with pytest.raises(BuildError):
        copy_file(tmp_path / "a", tmp_path / "b", stop)


@pytest.mark.parametrize(
    ("layers", "lacks"),
    [
        ((), False),
        ((("apt", False), ("post", False)), False),  # nothing that is imported much
        ((("pip", False),), True),
        ((("apt", False), ("pip", True)), False),
        ((("pip", True), ("post", False)), True),
        ((("conda", False), ("pip", True)), True),
    ],
)
def test_bytecode_is_lacking_where_sources_are_not_compiled(layers, lacks) -> None:
    assert lacks_bytecode(layers) is lacks
