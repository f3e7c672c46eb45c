"""Fixtures of the end-to-end tests: real broker, real registry, real endpoints.

Which endpoint is tested: ``GCA_E2E_VENV`` names a virtual environment that provisioning
made (``newest``, ``oldest``) or is the path of one; by default it is the one that runs
pytest. A missing service fails the tests, and says which: a skip would hide a missing
install step.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # for the helpers beside this folder

from loopback.testbed import Bed, testbed  # noqa: E402
from provision import services  # noqa: E402
from provision.conda_channel import Channel, Package  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

WORKSTATION = TESTS.parent / "endpoint_templates" / "workstation"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the endpoint's logs beside the traceback of a test that failed on it."""
    report = yield
    fixtures = getattr(item, "funcargs", {}).values()
    beds = {id(bed): bed for bed in fixtures if isinstance(bed, Bed)}
    if report.failed:
        report.sections += [("endpoint logs", b.log_tails()) for b in beds.values()]
    return report


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
    lines = written.read_text().splitlines() if written.exists() else []
    found = dict(line.partition("=")[::2] for line in lines if "=" in line)
    return found | {k: v for k, v in os.environ.items() if k.startswith("GCA_")}


@pytest.fixture(scope="session")
def venv_bin(provisioned: dict[str, str]) -> Path:
    """The programs of the environment whose endpoint is tested."""
    wanted = provisioned.get("GCA_E2E_VENV") or sys.prefix
    venv = provisioned.get(f"GCA_VENV_{wanted.upper()}") or wanted
    programs = Path(venv, "bin")
    if not (programs / "globus-compute-endpoint").exists():
        pytest.fail(f"globus-compute-endpoint is not installed in {venv}")
    return programs


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.RabbitMQ]:
    """A RabbitMQ server of this test session's own."""
    if not shutil.which("rabbitmq-server", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.fail("RabbitMQ is not installed (Debian: rabbitmq-server)")
    with services.rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session")
def image_registry(provisioned: dict[str, str]) -> Iterator[str]:
    """``HOST:PORT`` of a registry with the base images, over plain HTTP."""
    store = provisioned.get("GCA_REGISTRY_STORE")
    if not store or not Path(store).is_dir():
        pytest.fail("no store of base images: run tests/provision/provision")
    with services.registry(Path(store)) as address:
        yield address


@pytest.fixture(scope="module")
def stock_bed(
    tmp_path_factory: pytest.TempPathFactory,
    broker: services.RabbitMQ,
    venv_bin: Path,
) -> Iterator[Bed]:
    """An endpoint with the stock engine."""
    workdir = tmp_path_factory.mktemp("stock")
    with testbed(workdir, rabbitmq=broker, venv_bin=venv_bin) as bed:
        yield bed


@pytest.fixture(scope="module")
def container_bed(
    tmp_path_factory: pytest.TempPathFactory,
    broker: services.RabbitMQ,
    venv_bin: Path,
    image_registry: str,
) -> Iterator[Bed]:
    """An endpoint with our engine, from the workstation template, its cache empty, with
    a conda channel of its own that has the package ``tool``."""
    if not shutil.which("apptainer"):
        pytest.fail("Apptainer is not installed")
    workdir = tmp_path_factory.mktemp("containers")
    images = workdir / "images"
    channel = Channel(workdir / "channel")
    channel.add(Package("tool", files={"bin/tool": "#!/bin/sh\necho tool of conda\n"}))
    build = f"""
      http_registries: ['{image_registry}']
      conda_channels: ['{channel.url}']"""
    with testbed(
        workdir,
        rabbitmq=broker,
        venv_bin=venv_bin,
        template_dir=WORKSTATION,
        template_edits={
            "cache_dir: ~/.cache/globus-compute-apptainer": f"cache_dir: {images}",
            "    build:": f"    build:{build}",
            "idle_heartbeats_soft: 10": "heartbeat_period: 5",
        },
    ) as bed:
        yield bed
