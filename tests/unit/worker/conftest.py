"""The agent on the host's Python, without a container around it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceDill

from globus_compute_apptainer.worker import agent
from globus_compute_apptainer.worker.container import Container
from globus_compute_apptainer.worker.launch import Launch
from globus_compute_apptainer.worker.order import ContainerOrder


@pytest.fixture
def order() -> ContainerOrder:
    return ContainerOrder(
        image="/cache/image.sif",
        size=10,
        spec_digest="sha256:" + "1" * 64,
        image_digest="sha256:" + "2" * 64,
        base="docker://python:3.11-slim",
        cache="built",
        build_seconds=2.5,
        apptainer_version="1.4.5",
        python="/usr/bin/python3",
        python_version="3.11.2",
    )


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """What is bound into a container."""
    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("globus_compute_sdk", "dill"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        (folder / name).symlink_to(next(iter(spec.submodule_search_locations)))
    return folder


@pytest.fixture
def agent_launch(library: Path, tmp_path: Path) -> Callable[..., Launch]:
    """``agent_launch(**environment)``: the agent, which sees no site-packages."""

    def make(**environment: str) -> Launch:
        outside = agent.mount_namespace()
        argv = (sys.executable, "-S", "-s", agent.__file__)
        base = {"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1"}
        return Launch(
            (*argv, str(library), "4.19.0", outside),
            {**base, **environment},
            str(tmp_path),
        )

    return make


@pytest.fixture
def started(agent_launch) -> Iterator[Callable[..., Container]]:
    """``started(**environment)``: a running agent, closed after the test."""
    running = []

    def start(**environment: str) -> Container:
        running.append(Container(agent_launch(**environment), 60))
        return running[-1]

    yield start
    for container in running:
        container.close()


class Asker:
    """Asks an agent to run functions, as the runner does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serializer = ComputeSerializer(strategy_code=PureSourceDill())

    def body(self, function: Callable[..., Any], *args: Any) -> bytes:
        parts = [self.serializer.serialize(part) for part in (function, args, {})]
        return self.serializer.pack_buffers(parts).encode()

    def header(self, **changes: Any) -> dict[str, Any]:
        header = {
            "cwd": str(self.folder),
            "env": {},
            "limit": 1 << 20,
            "allowed": None,
            "result_serializers": None,
        }
        return {**header, **changes}

    def ask(
        self,
        container: Container,
        function: Callable[..., Any],
        *args: Any,
        **changes: Any,
    ) -> Any:
        """The value that the function returned, or the text of its error."""
        header, data = container.ask(self.header(**changes), self.body(function, *args))
        assert header["kind"] == "result", header
        if header["error"]:
            return data.decode()
        return self.serializer.deserialize(data.decode())


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(tmp_path)
