"""Builds killed at the start of each of their stages: what is left harms nobody.

Each is killed with SIGKILL in a process of its own, which cleans nothing up. Which
stages there are, a build that is left alone tells.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.store.cache import Store
from integration.images.conftest import Endpoint
from provision.conda_channel import Channel, Package
from provision.wheels import make_wheel

pytestmark = pytest.mark.apptainer

SECONDS = 300

BUILD = """\
import json, os, signal, sys
from globus_compute_apptainer import events
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.images import open_service

config, spec, fatal = json.loads(sys.argv[1])

def sink(event):
    stage = event.stage if isinstance(event, events.StageStarted) else ""
    if isinstance(event, events.BuildFinished):
        stage = "finished"
    if stage:
        print(stage, flush=True)
        if stage == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

block = ContainersConfig.parse(config)
wanted = Requests(block, "3.11").wanted(spec)
service = open_service(block, os.environ, sink)
service.request(wanted.image, policy=wanted.policy).result()
service.settle()
service.close()
"""

KINDS: dict[str, dict[str, Any]] = {
    "packages": {"post": ["cp /etc/hostname /made || echo x >/made"]},
    "flat": {},
    "debian": {"apt": ["hello"]},
    "conda": {},
    "files": {"files": {"postBuild": "#!/bin/sh\necho x >/made\n"}},
}

BEFORE, AFTER = ["resolve", "pull"], ["pack", "probe", "finished"]
STAGES: dict[str, list[str]] = {
    "packages": [*BEFORE, "pip", "post", *AFTER],
    "flat": [*BEFORE, "pip", *AFTER],
    "debian": [*BEFORE, "apt", "pip", *AFTER],
    "conda": [*BEFORE, "conda", *AFTER],
    "files": ["payload", *BEFORE, "pip", "payload", "post", *AFTER],
}


class Killing:
    """An endpoint whose process is killed while it builds.

    :param kind: of :data:`KINDS`
    """

    def __init__(self, endpoint: Endpoint, kind: str) -> None:
        self.endpoint, self.kind, self._number = endpoint, kind, 0
        self._channel = Channel(endpoint.folder / "channel")

    def spec(self) -> dict[str, Any]:
        """One that no build was asked for yet, with a package of its own."""
        self._number += 1
        name = f"thing{self._number}"
        asked: dict[str, Any] = {"base_image": self.endpoint.base}
        if self.kind == "conda":
            program = {f"bin/{name}": f"#!/bin/sh\necho {name}\n"}
            self._channel.add(Package(name, files=program))
            return {**asked, "conda": [name]}
        make_wheel(self.endpoint.links, name, "1.0")
        return {**asked, "pip": [f"{name}==1.0"], **KINDS[self.kind]}

    def config(self, cold: str = "") -> dict[str, Any]:
        """:param cold: name of a cache of its own, that knows no base"""
        build: dict[str, Any] = {"conda_channels": [self._channel.url]}
        if self.kind == "flat":
            build["strategy"] = "flat"
        where = {"cache_dir": str(self.endpoint.folder / cold)} if cold else {}
        return self.endpoint.config(**where, build=build)

    def build(
        self, spec: dict[str, Any], fatal: str = "", cold: str = ""
    ) -> tuple[list[str], int]:
        """Build in a process of its own; the stages that began, and how it ended.

        :param fatal: the stage that it is killed in
        """
        order = json.dumps([self.config(cold), spec, fatal])
        env = {
            **self.endpoint.variables(),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            [sys.executable, "-c", BUILD, order],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.stdout.split(), done.returncode

    def check(self, spec: dict[str, Any], fatal: str, cold: str = "") -> None:
        """Kill a build of ``spec`` in a stage; see that all is well then."""
        stages, ended = self.build(spec, fatal, cold)
        assert ended == -signal.SIGKILL, stages
        assert stages[-1] == fatal
        self._nothing_wrong_is_there(spec, fatal, cold)
        config = self.config(cold)
        ready = self.endpoint.get(spec, config=config)
        name = (spec.get("conda") or spec["pip"])[0].partition("==")[0]
        path, code = ready.image.path, f"import {name}; print({name}.__name__)"
        python = [str(ready.image.manifest.python), "-c", code]
        program = [name] if "conda" in spec else python
        assert self.endpoint.inside(path, *program).splitlines()[-1] == name
        if {"post", "files"} & set(spec):
            self.endpoint.inside(path, "test", "-s", "/made")
        if "apt" in spec:
            self.endpoint.inside(path, "hello")
        self._nothing_is_left(config)

    def _nothing_wrong_is_there(
        self, spec: dict[str, Any], fatal: str, cold: str
    ) -> None:
        config = ContainersConfig.parse(self.config(cold))
        wanted = Requests(config, "3.11").wanted(spec)
        store = Store(config.cache_dir)
        assert wanted is not None
        assert (store.lookup(wanted.image.digest) is not None) == (fatal == "finished")
        for image in store.images():
            assert store.examine(image).good

    def _nothing_is_left(self, config: dict[str, Any]) -> None:
        """A program that was running when its build was killed may still write where
        it works; what it leaves goes with a later start."""
        folder = Path(config["cache_dir"])
        deadline = time.monotonic() + 120
        while left := _left(self.endpoint, folder):
            assert time.monotonic() < deadline, left
            self.endpoint.get(self.spec(), config=config)


def _left(endpoint: Endpoint, cache: Path) -> list[Path]:
    work = [endpoint.scratch, *cache.glob("v*/tmp"), *cache.glob("v*/packages/work")]
    return [path for folder in work if folder.is_dir() for path in folder.iterdir()]


def killing(registry: str, folder: Path, kind: str) -> Killing:
    endpoint = Endpoint(folder / kind, registry)
    endpoint.scratch.mkdir(parents=True)
    return Killing(endpoint, kind)


def stages_of(killing: Killing) -> list[str]:
    stages, ended = killing.build(killing.spec())
    assert ended == 0, stages
    assert stages[-1] == "finished"
    return stages


def kill_in_each_stage(killing: Killing, times: int) -> Iterator[str]:
    """Those in which a build on a cold cache begins with its base get such a cache."""
    for stage in stages_of(killing):
        for number in range(times):
            cold = f"cold-{number}" if stage == "pull" else ""
            killing.check(killing.spec(), stage, cold)
        yield stage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_build_killed_in_any_stage_harms_nobody(
    registry: str, tmp_path: Path, kind: str, times: int
) -> None:
    stages = list(kill_in_each_stage(killing(registry, tmp_path, kind), times))
    assert stages == STAGES[kind]
