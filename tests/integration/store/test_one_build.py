"""Two processes that want the same image at once: one builds, both get it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.apptainer

GET = """\
import json, os, sys
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.images import open_service
from globus_compute_apptainer.spec.model import ImageSpec

registry, root, *pip = sys.argv[1:]
build = {"http_registries": [registry]}
config = ContainersConfig.parse({"cache_dir": root, "build": build})
image = ImageSpec(f"{registry}/python:3.11-slim", "docker", pip=tuple(pip))
service = open_service(config, os.environ)
print("ready", flush=True)
sys.stdin.read()
ready = service.request(image).result()
service.settle()
print(json.dumps([ready.cache, str(ready.image.path), str(ready.image.bytecode)]))
service.close()
"""


def ask(registry: str, cache: Path, *specs: tuple[str, ...]) -> list[list[str]]:
    """What processes get that ask at once, one for each of ``specs``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", GET, registry, str(cache)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([*argv, *pip], env=env, stdin=pipe, stdout=pipe, text=True)
        for pip in specs
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.close()
    answers = [json.loads(p.stdout.read()) for p in running if p.stdout]
    assert [process.wait(60) for process in running] == [0] * len(specs)
    return answers


def test_one_builds_and_both_get_it(registry, tmp_path: Path):
    answers = ask(registry, tmp_path / "cache", *[("humanize",)] * 3)
    assert sorted(answer[0] for answer in answers) == ["built", "shared", "shared"]
    assert len({answer[1] for answer in answers}) == 1
    assert len({answer[2] for answer in answers}) == 1
    top = tmp_path / "cache/v2"
    assert len(list((top / "logs").rglob("*.log"))) == 1
    assert len(list((top / "images").rglob("bytecode.sqfs"))) == 1
    assert list((top / "tmp").iterdir()) == []


def test_different_images_share_what_they_are_made_of(registry, tmp_path: Path):
    answers = ask(registry, tmp_path / "cache", ("humanize",), ("tqdm",), ())
    assert {answer[0] for answer in answers} == {"built"}
    top = tmp_path / "cache/v2"
    assert len(list((top / "bases").rglob("*.sif"))) == 1
    assert len(list((top / "layers").rglob("*.sqfs"))) == 2
    assert list((top / "tmp").iterdir()) == []
