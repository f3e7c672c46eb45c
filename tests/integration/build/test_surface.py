"""Layers of Debian packages, made in an unpacked base and in an overlay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.system import surface
from globus_compute_apptainer.build.system.flat import build_flat
from globus_compute_apptainer.build.system.surface import OverlayUnsuitableError
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.store.shelf import Shelf
from integration.build.overlays import Stack, listed, stacked

pytestmark = pytest.mark.apptainer

OVERLAYS_ONLY = {"/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/tmp.ci"}
"""Opened and not written to; made, and gone again."""


@pytest.fixture
def stack(make_job, python_sif: Path, tmp_path: Path) -> Iterator[Stack]:
    with stacked(make_job, python_sif, tmp_path) as stack:
        yield stack


@pytest.fixture
def images(monkeypatch) -> list[Path]:
    """What containers were started from."""
    found: list[Path] = []

    def noted(make):
        def made(*arguments):
            if (place := make(*arguments)) is not None:
                found.append(place.image)
            return place

        return made

    for name in ("sandbox", "overlay"):
        monkeypatch.setattr(surface, name, noted(getattr(surface, name)))
    return found


def in_overlay(stack: Stack, folder: Path, package: str, monkeypatch) -> Layer:
    other = Stack(stack.make_job, stack.below.sif, folder)
    other.shelf = Shelf(folder / "v3", "layers")
    monkeypatch.setattr(surface, "MOST_UNPACKED", 0)
    return other.apt(package)


def test_both_ways_make_the_same_layer(stack, tmp_path, monkeypatch, images):
    first = listed(stack.apt("at"))  # a package with users and modes of its own
    second = listed(in_overlay(stack, tmp_path, "at", monkeypatch))
    assert [path.is_relative_to(stack.job.scratch) for path in images] == [True, False]
    assert first == {n: s for n, s in second.items() if n not in OVERLAYS_ONLY}
    assert any(owner != "0/0" for _, owner in first.values())
    assert stack.clean()


def test_files_that_are_written_anew_keep_the_owner_they_have_in_the_base(
    stack: Stack, tmp_path: Path, images
):
    stack.post("chgrp shadow /etc/shadow")
    base = tmp_path / "with-owners.sif"
    build_flat(stack.job, stack.below.sif, stack.below.layers, base)
    stack.below = replace(stack.below, sif=base, layers=())
    paths = listed(stack.apt("uuid-runtime"))  # which makes a user
    assert images[-1].is_relative_to(stack.job.scratch)
    assert paths["/etc/shadow"] == ("-rw-r-----", "0/42")


def test_over_other_layers_it_is_an_overlay(stack: Stack, images):
    stack.post("touch /x")
    stack.apt("tree")
    assert images == [stack.below.sif, stack.below.sif]


def test_a_large_base_is_not_unpacked(stack: Stack, images, monkeypatch):
    size = stack.below.sif.stat().st_size
    monkeypatch.setattr(surface, "MOST_UNPACKED", size)  # more than it is, packed
    stack.apt("tree")
    assert images == [stack.below.sif]


def test_where_directories_are_no_containers_an_overlay_is_tried(
    stack: Stack, images, configured
):
    stack.job = stack.make_job(apptainer=configured(allow_container_dir="no"))
    with pytest.raises(OverlayUnsuitableError, match="disallows users"):
        stack.apt("tree")
    assert [path == stack.below.sif for path in images] == [False, True]
    assert "directory does not start" in stack.job.log.read_text()
    assert stack.clean()


def test_a_base_that_cannot_be_unpacked_is_laid_under(
    stack: Stack, images, monkeypatch
):
    monkeypatch.setattr(surface, "processors", lambda: -1)  # which it refuses
    stack.apt("tree")
    assert images == [stack.below.sif]
    assert "cannot be unpacked here" in stack.job.log.read_text()
    assert stack.clean()


def test_a_package_that_does_not_exist_is_not_looked_for_twice(stack: Stack, images):
    with pytest.raises(BuildError) as caught:
        stack.apt("no-such-debian-package")
    assert caught.value.code == "package-not-found"
    assert len(images) == 1
    assert stack.clean()
