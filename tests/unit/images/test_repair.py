"""Complaints of images: judged once, and never held against another image."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.index import BYTECODE


def image(name: str = "pandas") -> model.ImageSpec:
    spec = model.parse({"base_image": "python:3.11-slim", "pip": [name]})
    return spec.image_spec(default_base="docker://x", python="3.11")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def service(store: Store, tmp_path: Path, builder: Any):
    made = ImageService(store, lambda: builder, BuildConfig(tmp_dir=tmp_path))
    yield made
    made.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read, examine = [], store.examine

    def counting(image: Any, cancel: Any = None) -> Any:
        read.append(image.path)
        return examine(image, cancel)

    monkeypatch.setattr(store, "examine", counting)
    return read


def test_a_good_image_is_read_once_for_all_who_complain(service, store, monkeypatch):
    read = counted(store, monkeypatch)
    ready = service.request(image()).result(30)
    answers = [service.mend(ready) for _ in range(20)]
    assert {answer.result(30) for answer in answers} == {False}
    assert len(read) == 1


def test_late_complaints_do_not_touch_the_new_image(service, store, monkeypatch):
    ready = service.request(image()).result(30)
    flip(ready.image.path)
    damaged = service.cached(image().digest)
    assert service.mend(damaged).result(30)
    new = service.request(image()).result(30)
    read = counted(store, monkeypatch)
    late = [service.mend(damaged) for _ in range(20)] + [service.mend(ready)]
    assert {answer.result(30) for answer in late} == {True}
    assert read == []
    assert service.cached(image().digest).image == new.image
    assert len(list((store.top / "quarantine").iterdir())) == 1


def test_the_same_content_made_again_is_another_file(service, store) -> None:
    """A build that is reproducible puts it to the very same place."""
    ready = service.request(image()).result(30)
    content = ready.image.path.read_bytes()
    flip(ready.image.path)
    damaged = service.cached(image().digest)
    assert service.mend(damaged).result(30)
    again = ready.image.path.parent.parent.parent.parent.parent.parent / "again.sif"
    again.write_bytes(content)
    new = store.publish(again, ready.image.manifest)
    assert new.path == damaged.image.path
    assert service.mend(damaged).result(30)
    assert store.lookup(image().digest) == new


def test_damaged_bytecode_is_removed_and_the_image_stays(service, store) -> None:
    ready = service.request(image()).result(30)
    with store.workspace() as work:
        (work / BYTECODE).write_bytes(b"compiled")
        store.attach(ready.image, work / BYTECODE)
    assert not service.mend(ready).result(30)
    flip(ready.image.path.with_name(BYTECODE))
    service._repair._good.clear()  # ten minutes later
    assert service.mend(ready).result(30)
    assert ready.image.bytecode is None
    assert store.lookup(image().digest) == ready.image


def test_a_damaged_image_of_the_site_is_not_handed_out_again(tmp_path, builder) -> None:
    site = ImageService(
        Store(tmp_path / "site"), lambda: builder, BuildConfig(tmp_dir=tmp_path)
    )
    site.request(image()).result(30)
    site.close()
    service = ImageService(
        Store(tmp_path / "own"),
        lambda: builder,
        BuildConfig(tmp_dir=tmp_path),
        shared=[Store(tmp_path / "site")],
    )
    ready = service.cached(image().digest)
    assert ready.cache == "shared"
    flip(ready.image.path)
    ready = service.cached(image().digest)
    assert service.mend(ready).result(30)
    assert service.cached(image().digest) is None
    assert service.request(image()).result(30).cache == "built"
    assert ready.image.path.exists()
    service.close()


def test_what_cannot_be_told_is_no_reason_to_try_again(service, store, monkeypatch):
    ready = service.request(image()).result(30)

    def broken(*_: object) -> None:
        raise StoreError("cannot be read")

    monkeypatch.setattr(store, "examine", broken)
    assert service.mend(ready).result(30) is False
    service.close()
    assert service.mend(ready).result(0) is False


def test_the_end_of_the_service_ends_the_reading(service, store) -> None:
    ready = service.request(image()).result(30)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(StoreError) as caught:
        store.examine(ready.image, cancel)
    assert caught.value.code == "build-cancelled"
