"""Caches of the site are looked into first and never written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store

root_only = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def image(name: str = "pandas") -> model.ImageSpec:
    spec = model.parse({"base_image": "python:3.11-slim", "pip": [name]})
    return spec.image_spec(default_base="docker://x", python="3.11")


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.fixture
def site(tmp_path: Path, builder: Any) -> Path:
    """A cache with one image, which nobody may write to."""
    config = BuildConfig(tmp_dir=tmp_path)
    service = ImageService(Store(tmp_path / "site"), lambda: builder, config)
    service.request(image()).result(30)
    service.close()
    return tmp_path / "site"


@pytest.fixture
def service(tmp_path: Path, site: Path, builder: Any) -> Iterator[ImageService]:
    made = ImageService(
        Store(tmp_path / "own"),
        lambda: builder,
        BuildConfig(tmp_dir=tmp_path),
        shared=[Store(tmp_path / "nothing"), Store(site)],
    )
    yield made
    made.close()


def test_an_image_of_the_site_is_taken_as_it_is(service, site, builder) -> None:
    before = listing(site)
    ready = service.cached(image().digest)
    assert ready.cache == "shared"
    assert ready.image.path.is_relative_to(site)
    lease = service.use(ready)
    assert lease is not None
    lease.let_go()
    assert service.request(image()).result(30).cache == "shared"
    service.settle()
    assert listing(site) == before
    assert len(builder.builds) == 1


def test_what_the_site_has_not_is_built_in_the_own_cache(service, site, tmp_path):
    before = listing(site)
    ready = service.request(image("numpy")).result(30)
    assert ready.image.path.is_relative_to(tmp_path / "own")
    assert service.cached(image("numpy").digest).cache == "hit"
    assert listing(site) == before


def test_an_image_that_was_made_anew_is_used_from_then_on(service) -> None:
    made = service.request(image(), fresh=True).result(30)
    assert made.cache == "built"
    assert service.cached(image().digest).image == made.image


@root_only
def test_a_cache_that_cannot_be_read_is_passed_over(service, site, caplog) -> None:
    (site / "v2/index").chmod(0)
    try:
        for _ in range(3):
            assert service.cached(image().digest) is None
        assert service.request(image()).result(30).cache == "built"
    finally:
        (site / "v2/index").chmod(0o755)
    assert caplog.text.count("a shared cache is passed over") == 1
