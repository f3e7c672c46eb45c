"""Bytecode of wheels, compiled by this process's Python, in images."""

from __future__ import annotations

import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.python.compiled import Compiled
from globus_compute_apptainer.spec.model import ImageSpec
from integration.build.world import World
from provision.wheels import make_wheel

pytestmark = pytest.mark.apptainer

KEY = "sha256:" + "8" * 64
SITE = "/.gc-apptainer/env/lib/python3.11/site-packages"
CACHED = f"{SITE}/mod/__pycache__/__init__.cpython-311.pyc"
MOD = {"mod/__init__.py": "def run():\n    return 1\n", "mod/bad.py": "print 1\n"}
IMPORT = ("python3", "-v", "-c", "import mod; print(mod.run.__code__.co_filename)")


def age(packages: Path) -> None:
    """As if uv had unpacked all wheels a while ago."""
    for path in (packages / "uv").rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


@pytest.fixture
def first(world: World, base: Below) -> Layer:
    """An environment of wheels that nobody had before."""
    make_wheel(world.links, "mod", "1.0", files={**MOD, "mod/tests/x.py": "a = 1\n"})
    world.layer(base, "mod")
    age(world.packages)
    layer = world.layer(base, "mod", job=world.job(fresh=True))
    assert layer is not None
    return layer


def pack(world: World, base: Below, layer: Layer) -> Path | None:
    """The layer's bytecode, as it is made after the image."""

    def run(argv) -> bool:
        return subprocess.run(argv, check=False).returncode == 0

    python, env = base.inventory.python, str(layer.lock["environment"])
    known = Compiled.of(world.packages, env, python)
    assert known is not None
    target = world.folder / f"{len(layer.lock['packages'])}-bytecode.sqfs"
    done = known.pack(layer.file, target, KEY, run)
    assert list((world.packages / "work").iterdir()) == []
    return target if done else None


def compiled(world: World, base: Below, layer: Layer, *over: str) -> list[str]:
    find = ("find", SITE, "-name", "*.pyc")
    return sorted(world.inside(base, layer, *find, over=over))


def test_the_first_environment_gets_it_afterwards(world: World, base: Below, first):
    assert first.lock["bytecode"] is False
    assert compiled(world, base, first) == []
    over = ("--overlay", f"{pack(world, base, first)}:ro")
    assert compiled(world, base, first, *over) == [CACHED]
    said = world.inside(base, first, *IMPORT, over=over)
    assert any("matches" in line and CACHED in line for line in said)
    assert f"{SITE}/mod/__init__.py" in said  # in tracebacks, too


def test_the_next_one_has_it_from_the_start(world: World, base: Below, first):
    assert pack(world, base, first)
    make_wheel(world.links, "alpha", "1.0")
    second = world.layer(base, "mod", "alpha")
    assert second.lock["bytecode"] is False  # alpha is new
    assert compiled(world, base, second) == [CACHED]
    said = world.inside(base, second, *IMPORT)
    assert any("matches" in line and CACHED in line for line in said)
    assert pack(world, base, second)
    make_wheel(world.links, "data", "1.0", files={"data.txt": "no Python"})
    age(world.packages)
    assert world.layer(base, "alpha", "data").lock["bytecode"] is False
    assert pack(world, base, world.layer(base, "alpha", "data"))
    assert world.layer(base, "mod", "alpha", "data").lock["bytecode"] is True


def test_what_is_changed_in_the_image_later_is_what_runs(world, base, first):
    assert pack(world, base, first)
    make_wheel(world.links, "alpha", "1.0")
    second = world.layer(base, "mod", "alpha")
    changed = MOD["mod/__init__.py"].replace("1", "2")  # as long as it was

    def fill(root: Path) -> None:
        path = root / SITE.lstrip("/") / "mod/__init__.py"
        path.parent.mkdir(parents=True)
        path.write_text(changed)

    over = ("--overlay", f"{world.files('post', fill).file}:ro")
    program = ("python3", "-c", "import mod; print(mod.run())")
    assert world.inside(base, second, *program) == ["1"]
    assert world.inside(base, second, *program, over=over) == ["2"]


def test_what_was_unpacked_a_moment_ago_is_not_laid_in_yet(world, base, first):
    """What changes a source in the same second could not be told from it."""
    assert pack(world, base, first)
    for path in (world.packages / "uv").rglob("mod/__init__.py"):
        os.utime(path)
    make_wheel(world.links, "alpha", "1.0")
    assert compiled(world, base, world.layer(base, "mod", "alpha")) == []


def test_an_image_of_wheels_that_are_known_is_complete_at_once(workshop, tmp_path):
    begun = []
    workshop.build(pip=("attrs", "iniconfig"))
    age(workshop.shelves.packages)
    workshop.layered = begun.append
    base, pip = f"{workshop.registry}/python:3.11-slim", ("attrs", "iniconfig")
    workshop.build_spec(ImageSpec(base, "docker", pip=pip), fresh=True)
    (compile_layers,) = begun
    assert compile_layers(tmp_path / "bytecode.sqfs", tmp_path, threading.Event())
    workshop.build(pip=pip)
    assert len(begun) == 2, "that layer was there, and stays as it is"
    built = workshop.build(pip=("attrs",))
    assert len(begun) == 2
    assert [layer.lock["bytecode"] for layer in built.layers] == [True]
    assert "bytecode" not in built.lock["pip"]
    (said,) = workshop.inside("python3", "-c", "import attr; print(attr.__cached__)")
    assert workshop.inside("ls", said) == [said]
    workshop.build(pip=("attrs",), post=("touch /x",))
    assert len(begun) == 3, "a script may have changed what was compiled"


def test_a_wheel_that_says_wrong_things_of_its_sources_is_not_compiled_for_others(
    world: World, base: Below
):
    honest = make_wheel(world.folder, "evil", "1.0", files={"evil.py": "a = 1\n"})
    with (
        zipfile.ZipFile(honest) as given,
        zipfile.ZipFile(world.links / honest.name, "w") as made,
    ):
        for name in given.namelist():
            text = "a = 2\n" if name == "evil.py" else given.read(name)
            made.writestr(name, text)
    layer = world.layer(base, "evil")
    assert pack(world, base, layer) is None
    assert not (world.packages / "compiled").exists()


def test_a_file_of_two_wheels_belongs_to_neither(world: World, base: Below):
    make_wheel(world.links, "one", "1.0", files={"both.py": "a = 1\n"})
    make_wheel(world.links, "two", "1.0", files={"both.py": "a = 2\n"})
    for name in ("one", "two"):
        assert pack(world, base, world.layer(base, name))
    both = world.layer(base, "one", "two")
    assert both.lock["bytecode"] is False
    assert compiled(world, base, both) == []
    assert pack(world, base, both) is None


def test_a_cache_that_cannot_be_written_to_harms_nobody(world, base, first):
    (world.packages / "compiled").mkdir(mode=0o500)
    assert pack(world, base, first) is None
