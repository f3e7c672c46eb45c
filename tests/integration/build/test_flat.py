"""Flat images: a base and its layers as one file system, with everything done in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from globus_compute_apptainer.build import sif
from globus_compute_apptainer.build.system.flat import build_flat
from globus_compute_apptainer.errors import BuildError
from integration.build.overlays import Stack, stacked

pytestmark = pytest.mark.apptainer

LOOK = "stat -c '%n %u %g %a' /a /closed; cat /a /payload/data; ls /etc/motd || true"


@pytest.fixture
def bare(make_job, python_sif: Path, tmp_path: Path) -> Iterator[Stack]:
    with stacked(make_job, python_sif, tmp_path) as stack:
        yield stack


@pytest.fixture
def stack(bare: Stack) -> Stack:
    bare.payload(data="data\n", postBuild="#!/bin/sh\necho built >>data\n")
    bare.post(
        "echo a >/a; chown 33:44 /a; chmod 4755 /a",
        "mkdir /closed; chown 42:42 /closed; chmod 711 /closed; rm -f /etc/motd",
    )
    return bare


def test_a_flat_image_shows_what_the_layers_show(stack: Stack, tmp_path: Path):
    flat = tmp_path / "flat.sif"
    lock = build_flat(stack.job, stack.below.sif, stack.below.layers, flat)
    assert lock == {"requested": [], "packages": []}
    assert sif.overlays(sif.parts(flat)) == []
    for options in ((), ("--underlay",), ("--fakeroot",)):
        seen = stack.inside(LOOK, flat, options)
        if options != ("--underlay",):
            assert seen == stack.inside(LOOK, stack.image(), options)
        assert seen[2:4] == ["a", "data"]
    for layer in stack.below.layers:
        assert stack.inside(f"ls {layer.marker}", flat) == [layer.marker]
    assert stack.clean()


def test_an_image_with_layers_is_flattened_from_its_own_file(stack: Stack, tmp_path):
    flat = tmp_path / "flat.sif"
    build_flat(stack.job, stack.image(), (), flat)
    assert sif.overlays(sif.parts(flat)) == []
    assert stack.inside(LOOK, flat) == stack.inside(LOOK, stack.image())


def test_packages_and_post_come_after_the_layers(stack: Stack, tmp_path: Path):
    flat = tmp_path / "flat.sif"
    lock = build_flat(
        stack.job,
        stack.below.sif,
        stack.below.layers,
        flat,
        apt=("tree",),
        post=("tree --version >/said; cat /payload/data /a >>/said",),
        post_build=True,
    )
    assert lock["requested"] == ["tree"]
    assert [package["name"] for package in lock["packages"]] == ["tree"]
    said = stack.inside("cat /said", flat)
    assert said[0].startswith("tree v2")
    assert said[1:] == ["data", "built", "a"]
    stages = stack.job.transcript.stage_seconds()
    assert {"apt", "post", "pack"} <= set(stages)
    assert stack.clean()


def test_a_post_that_fails_is_told(stack: Stack, tmp_path: Path):
    flat = tmp_path / "flat.sif"
    with pytest.raises(BuildError, match="status 2; the last command was `ls /no`"):
        build_flat(stack.job, stack.below.sif, (), flat, post=("echo x", "ls /no"))
    assert not flat.exists()
    assert stack.clean()


def test_a_link_of_the_base_leads_nowhere(bare: Stack, tmp_path: Path):
    """A base may have one where a layer has a directory, to a place of the host."""
    host = tmp_path / "host"
    host.mkdir(mode=0o777)
    hostile = tmp_path / "hostile.sif"
    stack, base = bare, bare.below.sif
    build_flat(stack.job, base, (), hostile, post=(f"ln -s {host} /payload",))
    stack.payload(data="data\n")
    flat = tmp_path / "flat.sif"
    build_flat(stack.job, hostile, stack.below.layers, flat)
    assert stack.inside("cat /payload/data", flat) == ["data"]
    assert list(host.iterdir()) == []
