"""One SIF of base and layers, as Apptainer shows it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import run
from globus_compute_apptainer.build.layer import Layer, layer_key, place_marker
from globus_compute_apptainer.build.layers import LAYER_FILE, sif_with, squash


@pytest.fixture
def make_layer(make_job, tmp_path: Path):
    """``make_layer("pip", {"path": "text"})`` → a real layer."""

    def make(kind: str, files: dict[str, str]) -> Layer:
        root = tmp_path / f"{kind}-root"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        key = layer_key(kind, files=files)
        place_marker(root, key)
        squash(make_job(), root, tmp_path / f"{kind}-{LAYER_FILE}")
        return Layer(kind, key, tmp_path / f"{kind}-{LAYER_FILE}")

    return make


@pytest.fixture
def image(make_job, make_layer, python_sif, tmp_path) -> Path:
    low = make_layer("apt", {"both": "low", "only-low": "low"})
    high = make_layer("pip", {"both": "high", "etc/only-high": "high"})
    sif_with(make_job(), python_sif, [low, high], tmp_path / "image.sif")
    return tmp_path / "image.sif"


def inside(apptainer, image: Path, script: str, *options: str) -> tuple[bool, list]:
    lines: list[str] = []
    argv = apptainer.exec_argv(
        image, ["/bin/sh", "-c", script], options=["--no-home", *options], cwd="/"
    )
    env = apptainer.environment()
    ended = run(argv, env=env, timeout=120, on_line=lines.append)
    return ended.ok, [line for line in lines if not line.startswith("INFO")]


def test_the_later_layer_lies_on_top(apptainer, image) -> None:
    ok, said = inside(
        apptainer, image, "cat both only-low etc/only-high; ls etc/passwd"
    )
    assert ok, said
    assert said == ["highlowhighetc/passwd"]


def test_everything_in_a_layer_belongs_to_root(apptainer, image) -> None:
    ok, said = inside(apptainer, image, "stat -c %u:%g /both /.gc-apptainer")
    assert ok, said
    expected = "0:0"
    if os.geteuid() != 0:
        expected = subprocess.run(
            [apptainer.path, "exec", str(image), "stat", "-c", "%u:%g", "/bin"],
            capture_output=True,
            text=True,
            env=apptainer.environment(),
        ).stdout.strip()
    assert said == [expected] * 2


def test_the_base_is_left_as_it_was(apptainer, image, python_sif) -> None:
    ok, said = inside(apptainer, python_sif, "ls -d /both /.gc-apptainer")
    assert not ok, said


def test_without_overlays_the_bare_base_starts_without_a_word(apptainer, image) -> None:
    """Why every layer has a marker, and every container looks for it."""
    ok, said = inside(apptainer, image, "ls -d /.gc-apptainer", "--underlay")
    assert not ok, said
