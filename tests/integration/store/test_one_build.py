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
from pathlib import Path
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.builder import Builder
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.cache import Store

registry, root = sys.argv[1:]
config = BuildConfig(http_registries=(registry,))
image = ImageSpec(f"{registry}/python:3.11-slim", "docker", post=("echo x >/x",))
builder = Builder(Apptainer.find(), config, SiteAccess.from_host(os.environ, config))
service = ImageService(Store(Path(root)), lambda: builder, config)
print("ready", flush=True)
sys.stdin.read()
ready = service.request(image).result()
print(json.dumps([ready.cache, str(ready.image.path)]))
service.close()
"""


def test_one_builds_and_both_get_it(apptainer, registry, tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", GET, registry, str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.close()
    answers = [json.loads(p.stdout.read()) for p in running if p.stdout]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(answer[0] for answer in answers) == ["built", "shared", "shared"]
    assert len({answer[1] for answer in answers}) == 1
    logs = list((tmp_path / "cache/v1/logs").rglob("*.log"))
    assert len(logs) == 1
