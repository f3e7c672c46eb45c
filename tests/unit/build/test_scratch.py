"""Choosing where to build, and clearing up after builds that were killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from globus_compute_apptainer.build import scratch
from globus_compute_apptainer.build.scratch import (
    Place,
    choose_place,
    choose_scratch,
    private_scratch,
    remove_tree,
    sweep,
)
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError, ConfigError
from globus_compute_apptainer.owners import owned_name

GB = 10**9
MEMORY = Place(Path("/m"), 16 * GB, memory=True)
DISK = Place(Path("/d"), 50 * GB)
SMALL = Place(Path("/s"), 1 * GB)


@pytest.mark.parametrize(
    ("places", "available", "chosen"),
    [
        ([MEMORY, DISK], 20 * GB, MEMORY),
        ([MEMORY, DISK], 7 * GB, DISK),  # it would take most of the memory
        ([Place(Path("/m"), 7 * GB, memory=True), DISK], 20 * GB, DISK),
        ([Place(Path("/m"), 16 * GB, True, usable=False), DISK], 20 * GB, DISK),
        ([SMALL, DISK], 20 * GB, DISK),
        ([DISK, Place(Path("/e"), 90 * GB)], 20 * GB, DISK),  # the first will do
        ([Place(Path("/t"), 100), SMALL], 20 * GB, SMALL),  # none has room: the most
        ([MEMORY], 1 * GB, None),
        ([], 20 * GB, None),
    ],
)
def test_choice(places: list[Place], available: int, chosen: Place | None):
    assert choose_place(places, 4 * GB, available) == chosen


def test_a_configured_directory_is_used_whatever_its_room(tmp_path: Path):
    config = BuildConfig(tmp_dir=tmp_path)
    assert choose_scratch(config, need=10**18) == tmp_path


def test_a_configured_directory_must_be_there(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        choose_scratch(BuildConfig(tmp_dir=tmp_path / "none"))
    assert caught.value.key == "build.tmp_dir"


def test_a_place_is_found_here():
    assert choose_scratch(BuildConfig(), need=1).is_dir()


def test_fallbacks_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scratch, "_MEMORY_PLACE", tmp_path / "none")
    monkeypatch.setattr(scratch, "_DISK_PLACES", ())
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    assert choose_scratch(BuildConfig(), need=1, fallbacks=[tmp_path]) == tmp_path
    with pytest.raises(BuildError) as caught:
        choose_scratch(BuildConfig(), need=1)
    assert caught.value.code == "disk-full"


def test_it_is_private_empty_and_gone_afterwards(tmp_path: Path):
    with private_scratch(BuildConfig(tmp_dir=tmp_path)) as path:
        assert path.parent == tmp_path
        assert list(path.iterdir()) == []
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "a").mkdir()
        (path / "a/b").write_text("x")
        (path / "a").chmod(0o500)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_apart(tmp_path: Path):
    config = BuildConfig(tmp_dir=tmp_path)
    with private_scratch(config) as one, private_scratch(config) as two:
        assert one != two
        assert one.is_dir()


def test_it_goes_with_an_exception_too(tmp_path: Path):
    with (
        pytest.raises(RuntimeError),
        private_scratch(BuildConfig(tmp_dir=tmp_path)),
    ):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_swept_by_the_next(tmp_path: Path):
    program = (
        "import os, sys, pathlib\n"
        "from globus_compute_apptainer.build.scratch import private_scratch\n"
        "from globus_compute_apptainer.config import BuildConfig\n"
        "config = BuildConfig(tmp_dir=pathlib.Path(sys.argv[1]))\n"
        "with private_scratch(config) as path:\n"
        "    (path / 'big').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "big").exists()
    with private_scratch(BuildConfig(tmp_dir=tmp_path)) as path:
        assert list(tmp_path.iterdir()) == [path]


def test_links_are_not_followed(tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()
    dead = re.sub(r"-\d+-(\d+-\w+)$", r"-4194999-\1", owned_name(scratch.PREFIX))
    (tmp_path / dead).symlink_to(target)
    assert sweep(tmp_path) == []
    assert target.exists()


def test_remove_tree_of_nothing(tmp_path: Path):
    assert remove_tree(tmp_path / "none")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Memory and disk; the memory has room for one build, and its share, only."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    for path in (memory, disk):
        path.mkdir()
    monkeypatch.setattr(scratch, "_MEMORY_PLACE", memory)
    monkeypatch.setattr(scratch, "_DISK_PLACES", ())
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(disk))
    monkeypatch.setattr(scratch, "available_memory", lambda: 2500)
    return memory, disk


def test_builds_at_once_do_not_count_on_the_same_memory(places: tuple[Path, Path]):
    memory, disk = places
    with private_scratch(BuildConfig(), need=1000) as one:
        assert one.parent == memory
        with private_scratch(BuildConfig(), need=1000) as two:
            assert two.parent == disk
    with private_scratch(BuildConfig(), need=1000) as three:
        assert three.parent == memory


def test_builds_at_once_do_not_count_on_the_same_disk(places: tuple[Path, Path]):
    _, disk = places
    need = int(scratch._look(disk).free * 0.6)
    with private_scratch(BuildConfig(), need=need) as one:
        assert one.parent == disk
        assert scratch._look(disk).free < need
