"""``gc-apptainer`` as a person calls it: a process of its own, a configuration file."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provision.conda_channel import Channel, Package

COMMAND = [sys.executable, "-m", "globus_compute_apptainer.cli.main"]


@dataclass(frozen=True)
class Site:
    """A configuration with a cache and a scratch directory of its own."""

    config: Path
    cache: Path
    scratch: Path

    def argv(self, verb: str, *arguments: str) -> list[str]:
        return [*COMMAND, verb, "--config", str(self.config), *arguments]

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(verb, *arguments),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=self.config.parent,
        )

    def json(self, verb: str, *arguments: str) -> Any:
        """The report of a call that must succeed."""
        ran = self.run(verb, "--json", *arguments)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)


ALPHA = Package("alpha", files={"bin/alpha": "#!/bin/sh\necho alpha 1.0\n"})


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Channel:
    """The endpoint's own conda channel, which has :data:`ALPHA`."""
    made = Channel(tmp_path_factory.mktemp("channel"))
    made.add(ALPHA)
    return made


@pytest.fixture(scope="module")
def site(
    registry: str, channel: Channel, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    folder = tmp_path_factory.mktemp("site")
    (folder / "scratch").mkdir()
    build = {
        "http_registries": [registry],
        "tmp_dir": str(folder / "scratch"),
        "conda_channels": [channel.url],
    }
    block = {
        "cache_dir": str(folder / "cache"),
        "default_base": f"docker://{registry}/python:{{python}}-slim",
        "build": build,
        "images": {"small": {"python": "3.11", "pip": ["iniconfig"]}},
        "policy": {"allow_post": True, "payload_urls": ["*"]},
    }
    engine = {"type": "ApptainerEngine", "containers": block}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"engine": engine}))  # JSON is YAML
    return Site(config, folder / "cache", folder / "scratch")


@pytest.fixture
def left_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], list[str]]:
    """Command lines of the processes that this test started and that still run."""
    monkeypatch.setenv("GCA_TEST_MARK", str(tmp_path))
    mark = f"GCA_TEST_MARK={tmp_path}".encode()

    def left() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
        return found

    return left
