"""The real parts that integration tests stand on: Apptainer, a registry, base images.

They come from ``tests/provision/provision``; where one is missing the tests fail and
say so, since a test that skips itself would hide a missing install step.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # for the services beside this folder

from provision import services  # noqa: E402
from provision.oci import Layered, OwnRegistry, call  # noqa: E402


def _state_dir() -> Path:
    if named := os.environ.get("GCA_STATE_DIR"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/gc-apptainer-test")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gc-apptainer-test"


@pytest.fixture(scope="session")
def provisioned() -> dict[str, str]:
    """What provisioning wrote down; the process environment has the last word."""
    written = _state_dir() / "env"
    if not written.exists():
        pytest.fail(f"{written} is missing: run tests/provision/provision first")
    lines = written.read_text().splitlines()
    found = dict(line.partition("=")[::2] for line in lines if "=" in line)
    return found | {k: v for k, v in os.environ.items() if k.startswith("GCA_")}


@pytest.fixture(scope="session")
def registry(provisioned: dict[str, str]) -> Iterator[str]:
    """``host:port`` of a real registry on loopback that holds the base images
    ``python:3.11-slim``, ``python:3.13-slim`` and ``nopython:latest``."""
    with services.registry(Path(provisioned["GCA_REGISTRY_STORE"])) as address:
        yield address


@pytest.fixture(scope="session")
def apptainer() -> Apptainer:
    return Apptainer.find()


@pytest.fixture(scope="session")
def pull(apptainer: Apptainer, registry: str, tmp_path_factory: pytest.TempPathFactory):
    """``pull("python:3.11-slim")`` → path of a SIF; once per session and name."""
    folder = tmp_path_factory.mktemp("bases")

    def pull(name: str) -> Path:
        sif = folder / (name.replace(":", "-") + ".sif")
        if not sif.exists():
            argv = [apptainer.path, "pull", str(sif), f"docker://{registry}/{name}"]
            subprocess.run(
                argv,
                env={**apptainer.environment(), "APPTAINER_NOHTTPS": "1"},
                check=True,
                capture_output=True,
                timeout=300,
            )
        return sif

    return pull


@pytest.fixture(scope="session")
def python_sif(pull) -> Path:
    """A base image with Python 3.11."""
    return pull("python:3.11-slim")


@pytest.fixture(scope="session")
def nopython_sif(pull) -> Path:
    """A base image without Python."""
    return pull("nopython:latest")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnRegistry]:
    found = OwnRegistry(tmp_path / "registry")
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def nopython_layout(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = tmp_path_factory.mktemp("nopython") / "oci"
    tool = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false"]
    call(*tool, f"docker://{registry}/nopython:latest", f"oci:{layout}:made")
    return layout


@pytest.fixture
def layered(tmp_path: Path, nopython_layout: Path) -> Layered:
    """On a real base without Python."""
    layout = tmp_path / "image" / "oci"
    shutil.copytree(nopython_layout, layout)
    return Layered(layout, tmp_path / "image")


@pytest.fixture
def configured(apptainer: Apptainer, tmp_path: Path) -> Callable[..., Apptainer]:
    """``configured(enable_overlay="no")``: an Apptainer with that in its settings."""
    asked = [apptainer.path, "buildcfg", "APPTAINER_CONF_FILE"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True)
    shipped = Path(answer.stdout.strip()).read_text()

    def configure(**settings: str) -> Apptainer:
        changed = shipped
        for name, value in settings.items():
            name = name.replace("_", " ")
            changed = re.sub(rf"(?m)^#? ?{name} =.*$", f"{name} = {value}", changed)
        config, program = tmp_path / "apptainer.conf", tmp_path / "apptainer"
        config.write_text(changed)
        program.write_text(f'#!/bin/sh\nexec {apptainer.path} -c {config} "$@"\n')
        program.chmod(0o755)
        return Apptainer.find(str(program))

    return configure
