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
LIMIT = 8 << 20
PUBLISH = """\
import json, sys
from pathlib import Path
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store.cache import Store
from integration.store.publishing import A, B, files_of, image_of, manifest

root, outside = Path(sys.argv[1]), Path(sys.argv[2])

def publish(spec, mebibytes):
    try:
        return store.publish(image_of(outside, mebibytes), manifest(spec))
    except StoreError as error:
        return [error.code, bool(error.hint), bool(error.path), error.message]

store = Store(root)
store.prepare()
good = publish(A, 2)
before, said = files_of(root), {}
said["too large"] = publish(B, 20)
said["nothing left"] = files_of(root) == before
said["old one is whole"] = store.examine(store.lookup(A)).good
said["new one is not there"] = store.lookup(B) is None
said["a smaller one"] = store.examine(publish(B, 1)).good
print(json.dumps(said))
"""

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


def within_quota(folder: Path, script: str) -> str:
    """What a script says that is given a place with a quota, and one without."""
    place = folder / "place"
    place.mkdir()
    program = [sys.executable, "-c", script, str(place), str(folder)]
    ran = subprocess.run(
        [str(QUOTA), str(LIMIT), str(place), *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_quota_is_told_as_a_full_disk_is(tmp_path: Path) -> None:
    said = json.loads(within_quota(tmp_path, PUBLISH))
    code, *told, message = said.pop("too large")
    assert (code, told) == ("disk-full", [True, True])
    assert "quota" in message
    assert set(said.values()) == {True}, said


def test_copies_of_a_base_share_its_blocks_where_they_can(tmp_path: Path) -> None:
    """Four of five mebibytes, where there is room for eight."""
    within_quota(tmp_path, COPY)
