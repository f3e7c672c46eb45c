"""Bytecode made by one Python meets images with another."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dill
import globus_compute_sdk
import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk.serialize import ComputeSerializer

from globus_compute_apptainer.build.apptainer import Apptainer, bind
from globus_compute_apptainer.worker.inside import library

if TYPE_CHECKING:
    from .conftest import Inside

pytestmark = pytest.mark.apptainer

# A client with some Python and the SDK's serializers: it prints one function, which it
# takes from a script, packed by every strategy.
CLIENT = """
import sys
sys.path.insert(0, "/.gca")
import library
library.install_library("/.gca/library", "4.19.0")
from globus_compute_sdk.serialize import concretes
script, strategies = sys.argv[1:3]
space = {"__name__": "__main__"}
exec(compile(open(script).read(), script, "exec"), space)
import __main__
for name in ("fragile", "decorated"):
    for strategy in strategies.split():
        try:
            print(repr((name, strategy,
                getattr(concretes, strategy)().serialize(space[name]))))
        except Exception as error:
            print(repr((name, strategy, None)))
"""
SCRIPT = """
def fragile(n):
    return [i + 1 for i in range(n)], sum(x for x in range(n)), f"{n}"

def twice(function):
    return lambda n: (function(n), function(n))

@twice
def decorated(n):
    return print(n)
"""
STRATEGIES = "DillCode AllCodeStrategies CombinedCode PureSourceTextInspect"
RESULT = ([1, 2, 3], 3, "3")
VERSIONS = {"python:3.11-slim": "3.11.2", "python:3.13-slim": "3.13.5"}
ELSEWHERE = {
    "python:3.11-slim": "python:3.13-slim",
    "python:3.13-slim": "python:3.11-slim",
}


@pytest.fixture(scope="module", params=VERSIONS)
def made(
    request: pytest.FixtureRequest, pull, apptainer: Apptainer, tmp_path_factory
) -> tuple[str, dict[tuple[str, str], str | None]]:
    """The client's image, and what a client in it sends."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "client.py").write_text(CLIENT)
    binds = [bind(folder), bind(Path(library.__file__), "/.gca/library.py")]
    for package in (dill, globus_compute_sdk):
        source = Path(package.__file__).parent
        binds.append(bind(source, f"/.gca/library/{source.name}", read_only=True))
    client = [
        "python3",
        str(folder / "client.py"),
        str(folder / "script.py"),
        STRATEGIES,
    ]
    argv = apptainer.exec_argv(pull(request.param), client, binds=binds)
    said = subprocess.run(
        argv, env=apptainer.environment(), capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    lines = [eval(line) for line in said.stdout.splitlines()]
    return request.param, {(name, strategy): text for name, strategy, text in lines}


@pytest.fixture
def send(inside: Inside, pull):
    """``send(function, image)``: the result of it for 3, in that image."""

    def send(function: str, image: str) -> Any:
        sif = pull(image)
        serializer = ComputeSerializer()
        rest = [serializer.serialize(part) for part in ((3,), {})]
        task_id = uuid.uuid4()
        text = serializer.pack_buffers([function, *rest])
        body = messagepack.pack(Task(task_id=task_id, task_buffer=text))
        order = {"image": str(sif), "size": sif.stat().st_size}
        node = inside.with_order(**order, python_version=VERSIONS[image])
        return node.message(body, task_id)

    return send


def test_bytecode_runs_where_it_was_made(made, send, value_of) -> None:
    image, sent = made
    assert value_of(send(sent["fragile", "DillCode"], image)) == RESULT
    assert value_of(send(sent["decorated", "DillCode"], image)) == (None, None)


def test_bytecode_of_another_python_is_refused_and_crashes_nothing(
    made, send, value_of
) -> None:
    image, sent = made
    there = ELSEWHERE[image]
    ours, theirs = (name.removeprefix("python:")[:4] for name in (image, there))
    for name in ("fragile", "decorated"):
        result = send(sent[name, "DillCode"], there)
        assert result.error_details.code == "bytecode-mismatch", result.data
        assert f"bytecode of Python {ours}" in result.data
        assert f"Python {theirs} cannot run" in result.data


@pytest.mark.parametrize(
    "strategy", ["AllCodeStrategies", "CombinedCode", "PureSourceTextInspect"]
)
def test_source_runs_on_any_python(strategy: str, made, send, value_of) -> None:
    image, sent = made
    function = sent["fragile", strategy]
    assert function is not None
    for where in (image, ELSEWHERE[image]):
        assert value_of(send(function, where)) == RESULT


def test_source_that_is_of_no_use_does_not_end_in_a_crash(made, send) -> None:
    """A decorator is not part of a function's source: the bytecode is tried next."""
    image, sent = made
    function = sent["decorated", "AllCodeStrategies"]
    result = send(function, ELSEWHERE[image])
    assert result.is_error
    assert result.error_details.code in ("RemoteExecutionError", "bytecode-mismatch")
