"""Which overlay layers are the same, and when there can be none."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.layers import LAYER_FILE, Below
from globus_compute_apptainer.build.system.overlay import apt_layer, post_layer
from globus_compute_apptainer.build.system.surface import OverlayUnsuitableError
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf

BASE = "sha256:" + "0" * 64
INVENTORY = Inventory("", "debian", "glibc", "2.36", "x86_64", "/bin", has_bash=True)
LOWER = Layer("apt", "sha256:" + "1" * 64, Path("/apt.sqfs"))


class Always:
    """A shelf that has every layer, so that none is made."""

    def __init__(self, folder: Path) -> None:
        (folder / LAYER_FILE).touch()
        (folder / "layer.json").write_text("{}")
        self._folder = folder

    def find(self, key: str) -> Path:
        return self._folder


def below(digest: str = BASE, layers: tuple[Layer, ...] = ()) -> Below:
    return Below(digest, Path("/base.sif"), INVENTORY, layers)


def spec(**build_env: str) -> ImageSpec:
    return ImageSpec("x", "docker", build_env=tuple(build_env.items()))


@pytest.fixture
def apt(make_job, tmp_path: Path):
    shelf = Always(tmp_path)

    def key(packages, under=None, image=None) -> str:
        return apt_layer(
            make_job(image), under or below(), packages, shelf, tmp_path
        ).key

    return key


@pytest.fixture
def post(make_job, tmp_path: Path):
    shelf = Always(tmp_path)

    def key(lines, under=None, image=None, **more) -> str:
        return post_layer(make_job(image), under or below(), lines, shelf, **more).key

    return key


def test_the_same_packages_over_the_same_are_one_layer(apt):
    assert apt(["git", "tree"]) == apt(["tree", "git", "git"])


def test_whatever_decides_makes_another_layer_of_packages(apt):
    keys = {
        apt(["git"]),
        apt(["git=1"]),
        apt(["git", "tree"]),
        apt(["git"], below("sha256:" + "2" * 64)),
        apt(["git"], below(layers=(LOWER,))),
        apt(["git"], image=spec(A="b")),
    }
    assert len(keys) == 6


def test_whatever_decides_makes_another_layer_of_post(post):
    keys = {
        post(["a", "b"]),
        post(["b", "a"]),
        post(["a", "b"], post_build=True),
        post(["a", "b"], below("sha256:" + "2" * 64)),
        post(["a", "b"], below(layers=(LOWER,))),
        post(["a", "b"], image=spec(A="b")),
        post([], post_build=True),
    }
    assert len(keys) == 7


def says(folder: Path, *lines: str, started: bool = True) -> Apptainer:
    """An Apptainer that says this and fails; the container starts, or not."""
    path = folder / "apptainer"
    start = f": >{folder}/scratch/kit-post/work/before" if started else ":"
    body = "\n".join(f"printf '%s\\n' '{line}'" for line in lines)
    path.write_text(f"#!/bin/sh\n{start}\n{body}\nexit 255\n")
    path.chmod(0o755)
    return Apptainer(str(path), "1.4.5")


@pytest.mark.parametrize(
    ("line", "started", "reason"),
    [
        (
            "FATAL:   overlay images requires a setting",
            False,
            "does not start here: overlay images requires a setting",
        ),
        (
            "@@fail resolve overlay-unavailable layers are not shown here",
            False,
            "layers are not shown here",
        ),
        ("rm: cannot remove x: Input/output error", True, "Input/output error"),
        ("mv: x: Invalid cross-device link", True, "Invalid cross-device link"),
    ],
)
def test_what_is_the_overlays_fault_is_no_failure_of_the_build(
    make_job, tmp_path: Path, line: str, started: bool, reason: str
):
    job = make_job(apptainer=says(tmp_path, line, started=started))
    with pytest.raises(OverlayUnsuitableError, match=reason):
        post_layer(job, below(), ["true"], Shelf(tmp_path / "v2", "layers"))
    assert job.transcript.failure is None  # of what comes next
    assert list(job.scratch.iterdir()) == []


def test_other_failures_are_the_builds(make_job, tmp_path: Path):
    job = make_job(apptainer=says(tmp_path, "cp: No space left on device"))
    with pytest.raises(BuildError) as caught:
        post_layer(job, below(), ["true"], Shelf(tmp_path / "v2", "layers"))
    assert caught.value.code == "disk-full"
    assert list(job.scratch.iterdir()) == []
    assert list((tmp_path / "v2/tmp").iterdir()) == []
