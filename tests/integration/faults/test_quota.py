"""A quota: used up, it is told as a full disk is; and what is copied takes none of it.

As root, since a file system with a quota has to be mounted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or "btrfs" not in Path("/proc/filesystems").read_text(),
    reason="needs root, and a file system that has quotas",
)

QUOTA = Path(__file__).parents[2] / "provision" / "quota"
PUBLISH = """\
import json, os, sys
from pathlib import Path
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.manifest import Manifest

SIF = bytes(index.SIF_MAGIC_AT) + index.SIF_MAGIC
root, outside = Path(sys.argv[1]), Path(sys.argv[2])
A, B = ("sha256:" + letter * 64 for letter in "ab")

def manifest(spec):
    return Manifest(
        spec_digest=spec, image_digest="", size=0, spec={}, base="", base_digest=None,
        python=None, python_version=None, os="", packages=(), platform="linux/amd64",
        apptainer_version="", builder_version="", created="", build_seconds=0.0)

def publish(spec, mebibytes):
    path = outside / f"{mebibytes}.sif"
    path.write_bytes(SIF + os.urandom((mebibytes << 20) - len(SIF)))
    try:
        return store.publish(path, manifest(spec))
    except StoreError as error:
        return [error.code, bool(error.hint), bool(error.path), error.message]

def files():
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

store = Store(root)
store.prepare()
good = publish(A, 2)
before, said = files(), {}
said["too large"] = publish(B, 20)
said["nothing left"] = files() == before
said["old one is whole"] = store.examine(store.lookup(A)).good
said["new one is not there"] = store.lookup(B) is None
said["a smaller one"] = store.examine(publish(B, 1)).good
print(json.dumps(said))
"""


def test_a_quota_is_told_as_a_full_disk_is(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    program = [sys.executable, "-c", PUBLISH, str(cache), str(tmp_path)]
    ran = subprocess.run(
        [str(QUOTA), str(8 << 20), str(cache), *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    code, *told, message = said.pop("too large")
    assert (code, told) == ("disk-full", [True, True])
    assert "quota" in message
    assert set(said.values()) == {True}, said


COPY = """\
import errno, os, sys
from pathlib import Path
from globus_compute_apptainer.build.layers import copy_file

place = Path(sys.argv[1])
base = place / "base"
with base.open("wb") as file:
    file.write(os.urandom(5 << 20))
    os.fsync(file.fileno())
for name in ("one", "two", "three"):
    copy_file(base, place / name, lambda: None)
    assert (place / name).read_bytes() == base.read_bytes()
try:
    with (place / "by hand").open("wb") as file:
        file.write(base.read_bytes())
        os.fsync(file.fileno())
except OSError as error:
    assert error.errno == errno.EDQUOT, error
else:
    raise AssertionError("there was room for one more")
"""


def test_copies_of_a_base_share_its_blocks_where_they_can(tmp_path: Path) -> None:
    """Four of five mebibytes, where there is room for eight."""
    place = tmp_path / "place"
    place.mkdir()
    program = [sys.executable, "-c", COPY, str(place)]
    ran = subprocess.run(
        [str(QUOTA), str(8 << 20), str(place), *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
