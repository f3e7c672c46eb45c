"""``gc-apptainer run-worker`` with a real image: it ends as its command does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from globus_compute_apptainer.store.cache import Store

if TYPE_CHECKING:
    from tests.integration.cli.conftest import Site

Left = Callable[[], list[str]]

pytestmark = pytest.mark.apptainer

DEADLINE_SECONDS = 180


@pytest.fixture
def bare(registry: str) -> str:
    """A spec that needs no build but the base's."""
    return json.dumps({"base_image": f"{registry}/nopython:latest"})


def test_the_command_runs_inside_and_ends_as_its_own(
    site: Site, bare: str, left_running: Left
) -> None:
    script = 'echo "$APPTAINER_CONTAINER"; pwd; echo err >&2; exit 7'
    ran = site.run("run-worker", "--spec", bare, "--", "/bin/sh", "-c", script)
    image, folder = ran.stdout.splitlines()
    assert ran.returncode == 7
    assert image.startswith(str(site.cache))
    assert folder == str(site.config.parent)
    assert "err" in ran.stderr.splitlines()
    ran = site.run("run-worker", "--spec", bare, "--", "/bin/sh", "-c", "kill -9 $$")
    assert ran.returncode == -signal.SIGKILL
    assert left_running() == []


def test_an_image_of_the_configuration_and_one_of_the_cache(
    site: Site, registry: str
) -> None:
    argv = ["--", "python3", "-c", "import iniconfig; print(iniconfig.__file__)"]
    ran = site.run("run-worker", "--image", "small", *argv)
    assert ran.stdout.startswith("/.gc-apptainer/env/"), ran.stderr
    digest = site.json("show", "small")["image_digest"]
    again = site.run("run-worker", "--image", digest, *argv)
    assert again.stdout == ran.stdout


def test_a_signal_reaches_the_command(
    site: Site, bare: str, left_running: Left
) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    argv = site.argv("run-worker", "--spec", bare, "--", "/bin/sh", "-c", script)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=DEADLINE_SECONDS)[0] == "caught\n"
    assert process.returncode == 5
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left_running():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_image_is_in_use_as_long_as_the_command_runs(site: Site, bare: str) -> None:
    script = "echo ready; read -r line"
    argv = site.argv("run-worker", "--spec", bare, "--", "/bin/sh", "-c", script)
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    leases = Store(site.cache).leases
    assert any(name.startswith("images-") for name in leases.in_use())
    process.communicate("go\n", timeout=DEADLINE_SECONDS)
    assert not any(name.startswith("images-") for name in leases.in_use())


def test_what_cannot_run_is_said_before_and_told_by_the_exit_code(
    site: Site, bare: str
) -> None:
    pool = ["globus-compute-endpoint", "python-exec", "x"]
    ran = site.run("run-worker", "--spec", bare, "--", *pool)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "[worker-missing]" in ran.stderr
    ran = site.run("run-worker", "--spec", '{"pipp": []}', "--", "true")
    assert (ran.returncode, ran.stdout) == (2, "")
    bad = json.dumps({"python": "3.11", "pip": ["no-such-package-xyz"]})
    ran = site.run("run-worker", "--spec", bad, "--", "true")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "[package-not-found]" in ran.stderr
    ran = site.run("run-worker", "--spec", bare, "--", "no-such-program")
    assert ran.returncode not in (0, 1, 2, 3)
    assert "no-such-program" in ran.stderr
