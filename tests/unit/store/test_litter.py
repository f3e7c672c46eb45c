"""What the dead left is finished or removed; what lives, or is foreign, stays."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.owners import Owner, owned_name
from globus_compute_apptainer.store import litter
from globus_compute_apptainer.store.cache import Store

A = "sha256:" + "a" * 64
DIE = """\
import os, pathlib, sys
from globus_compute_apptainer.store import {module}
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.manifest import Manifest
real = {module}.{function}
def dying(*args):
    if {after}:
        real(*args)
    os.kill(os.getpid(), 9)
{module}.{function} = dying
store = Store(pathlib.Path(sys.argv[1]), platform="linux/amd64")
store.prepare()
store.publish(pathlib.Path(sys.argv[2]), Manifest.from_json(sys.stdin.read()))
"""


def publish_and_die(root: Path, sif: Path, manifest, where: str, after: bool) -> None:
    module, function = where.split(".")
    program = DIE.format(module=module, function=function, after=after)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", program, str(root), str(sif)]
    text = manifest("a").to_json()
    ended = subprocess.run(argv, env=env, input=text, text=True, timeout=60)
    assert ended.returncode == -9


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "where", ["files.copy_durably", "files.write_durably", "placing.put"]
)
def test_a_death_while_publishing_leaves_all_or_nothing(
    store, root, sif, manifest, where, after
):
    publish_and_die(root, sif, manifest, where, after)
    store.prepare()
    assert list((root / "v2/tmp").iterdir()) == []
    found, images = store.lookup(A), list((root / "v2/images/sha256").glob("*/*"))
    assert bool(found) == bool(images) == (where == "placing.put" and after)
    assert store.publish(sif, manifest("a")) == store.lookup(A)


def test_an_entry_that_came_meanwhile_is_the_one_that_counts(
    store, root, sif, manifest
):
    publish_and_die(root, sif, manifest, "placing.put", True)
    sif.write_bytes(sif.read_bytes() + b"newer")
    newer = store.publish(sif, manifest("a"))
    store.prepare()
    assert store.lookup(A) == newer
    assert list((root / "v2/tmp").iterdir()) == []


def test_a_damaged_entry_of_the_dead_is_removed(store, root) -> None:
    store.prepare()
    dead = replace(Owner.current(), pid=4194999)
    (root / "v2/tmp" / owned_name("entry", dead)).write_bytes(b"\xff")
    store.prepare()
    assert list((root / "v2/tmp").iterdir()) == []


def test_leavings_are_told_by_their_owner(tmp_path: Path) -> None:
    dead = replace(Owner.current(), host="0123456789")
    mine, theirs = (tmp_path / owned_name("image", o) for o in (Owner.current(), dead))
    mine.mkdir()
    theirs.mkdir()
    (tmp_path / "other").mkdir()
    assert list(litter.leavings_of(tmp_path, dead)) == [theirs]


def test_caches_of_other_versions_are_recognised(tmp_path: Path) -> None:
    for name in ("v1", "v2", "v10", "vx", "CACHEDIR.TAG"):
        (tmp_path / name).mkdir()
    found = litter.other_versions(tmp_path, "v2")
    assert [path.name for path in found] == ["v1", "v10"]
    assert litter.other_versions(tmp_path / "none", "v2") == []


def test_an_older_and_a_newer_cache_are_left_alone(root, sif, manifest) -> None:
    for name in ("v1", "v3"):
        (root / name / "images").mkdir(parents=True)
    store = Store(root, platform="linux/amd64")
    store.prepare()
    store.publish(sif, manifest("a"))
    store.make_room(0)
    assert (root / "v1/images").exists()
    assert (root / "v3/images").exists()
