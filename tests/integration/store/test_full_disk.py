"""A cache on a real file system that is full, read-only, or both in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PUBLISH = """\
import json, os, subprocess, sys, threading
from pathlib import Path
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import cache
from globus_compute_apptainer.store.cache import Store
from integration.store.publishing import A, B, files_of, image_of, manifest

cache.MIN_FREE_BYTES = 0
root = Path(sys.argv[1])

def image(mebibytes):
    return image_of(root.parent, mebibytes)

def attempt(call, *args):
    try:
        call(*args)
    except StoreError as error:
        return [error.code, bool(error.hint), bool(error.path)]

def files():
    return files_of(root)

store, said = Store(root), {}
store.prepare()
good = store.publish(image(2), manifest(A))
before = files()
said["too large"] = attempt(store.publish, image(9), manifest(B))
said["nothing left"] = files() == before
said["old one is there"] = Store(root).lookup(A) == good
said["new one is not"] = Store(root).lookup(B) is None
(root / "ballast").write_bytes(b"")
try:
    with open(root / "ballast", "wb", buffering=0) as file:
        while file.write(b"x" * 4096): pass
except OSError:
    pass
said["prepare"] = attempt(Store(root).prepare)
def lock():
    with store.lock(B, cancel=threading.Event()):
        pass

said["lock"] = attempt(lock)
(root / "ballast").unlink()
said["room again"] = attempt(store.publish, image(3), manifest(B))
subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
said["read-only"] = attempt(store.publish, image(1), manifest(A))
said["read-only prepare"] = attempt(Store(root).prepare)
said["still read"] = Store(root).lookup(A) == good
print(json.dumps(said))
"""


def in_namespace(script: str, *arguments: str) -> list[str]:
    """Command line that may mount, seen by nobody else, as root or as a user."""
    flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    return ["unshare", *flags, "/bin/sh", "-euc", script, "sh", *arguments]


@pytest.fixture
def said(tmp_path: Path) -> dict:
    root = tmp_path / "cache"
    root.mkdir()
    script = 'mount -t tmpfs -o size=8m,mode=755 none "$1"; exec "$2" -c "$3" "$1"'
    argv = in_namespace(script, str(root), sys.executable, PUBLISH)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_full_and_read_only(said: dict):
    full, refused = ["disk-full", True, True], ["cache-unusable", True, True]
    assert said == {
        "too large": full,
        "nothing left": True,
        "old one is there": True,
        "new one is not": True,
        "prepare": None,  # an empty file still fits; publishing would not
        "lock": full,
        "room again": None,
        "read-only": refused,
        "read-only prepare": refused,
        "still read": True,
    }
