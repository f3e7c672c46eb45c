"""The agent on every Python that it may meet in an image."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from globus_compute_apptainer.errors import TaskError


@pytest.fixture
def launch_on(agent_launch):
    def make(version: str):
        python = shutil.which(f"python{version}")
        # A version manager's stand-in may be there for a Python that is not.
        if python is None or subprocess.run([python, "-c", ""]).returncode:
            pytest.skip(f"no python{version} in PATH")
        launch = agent_launch()
        return dataclasses.replace(launch, argv=(python, *launch.argv[1:]))

    return make


def version():
    import sys

    return list(sys.version_info[:2])


def fail():
    raise ValueError("on purpose")


def spin():
    while True:
        pass


@pytest.mark.parametrize("minor", range(9, 15))
def test_tasks(launch_on, start, asker, minor):
    from globus_compute_sdk import ShellFunction

    container = start(launch_on(f"3.{minor}"))
    assert container.facts.details["python_version"].startswith(f"3.{minor}.")
    assert asker.ask(container, version) == [3, minor]
    assert asker.ask(container, fail).endswith("ValueError: on purpose\n")
    shell = ShellFunction("echo out")
    asker.serializer.code_serializer = type(asker.serializer)().code_serializer
    assert asker.ask(container, shell).stdout == "out\n"


@pytest.mark.parametrize("minor", range(9, 15))
def test_errors(launch_on, start, asker, minor):
    container = start(launch_on(f"3.{minor}"))
    late = asker.ask(container, spin, env={"GC_TASK_TIMEOUT": "0.1"})
    assert late.endswith("parsl.app.errors.AppTimeout\n")
    unknown = ["globus_compute_sdk.serialize.Unknown"]
    text = asker.ask(container, version, result_serializers=unknown)
    assert "All strategies failed" in text and "Invalid strategy-like" in text
    assert asker.ask(container, version) == [3, minor]


def test_too_old(launch_on, start):
    with pytest.raises(TaskError) as caught:
        start(launch_on("3.8"))
    assert caught.value.tail == ("the image has Python 3.8; tasks need 3.9 or newer",)
    assert "newer Python" in caught.value.hint
