"""The agent on the host's Python, without a container around it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceDill

from globus_compute_apptainer.worker import inside, place
from globus_compute_apptainer.worker.container import Container
from globus_compute_apptainer.worker.inside import start as starting
from globus_compute_apptainer.worker.keeper.owner import start_of
from globus_compute_apptainer.worker.launch import Launch
from globus_compute_apptainer.worker.node import Bounds, Node, Prepare
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
    """``agent_launch(**environment)``: a zygote, which sees no site-packages."""
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / starting.NAME).symlink_to(Path(inside.__file__).parent)

    def make(*, preload: str = "[]", **environment: str) -> Launch:
        argv = (sys.executable, "-S", "-s", "-c", starting.BOOT, str(ours))
        base = {"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1"}
        return Launch(
            (*argv, str(library), "4.19.0", preload),
            {**base, **environment},
            str(tmp_path),
        )

    return make


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a pool's manager: when it ends, the pool does."""
    with subprocess.Popen(["sleep", "3600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def worker_pool(owner: subprocess.Popen[bytes]) -> Iterator[place.Pool]:
    """A worker pool, gone with its keeper and all containers after the test."""
    made = place.Pool(owner.pid, start_of(owner.pid))
    folder = place.folder(made)
    yield made
    owner.kill()
    if not (folder / place.SOCKET).exists():
        shutil.rmtree(folder, ignore_errors=True)  # nobody asked for anything
    deadline = time.monotonic() + 120
    while folder.exists():
        assert time.monotonic() < deadline, "the keeper has not ended"
        time.sleep(0.01)


@pytest.fixture
def node(worker_pool: place.Pool) -> Node:
    return Node(lambda: worker_pool)


@pytest.fixture
def given() -> Callable[[Launch], Prepare]:
    """``given(launch)``: what starts a container, ready to be sent."""
    return lambda launch: lambda: contextlib.nullcontext((launch, ()))


@pytest.fixture
def start(
    node: Node, given: Callable[[Launch], Prepare]
) -> Iterator[Callable[..., Container]]:
    """``start(launch)``: a child in the container that ``launch`` starts, which
    others may share if they give the same ``key``; closed after the test."""
    running = []

    def start(launch: Launch, key: str = "", **bounds: Any) -> Container:
        key = key or f"key {len(running)}"
        running.append(Container(node, key, given(launch), Bounds(60.0, **bounds)))
        return running[-1]

    yield start
    for container in running:
        container.close()


@pytest.fixture
def started(agent_launch, start) -> Callable[..., Container]:
    """``started(**environment)``: a running child, closed after the test."""
    return lambda **environment: start(agent_launch(**environment))


class Asker:
    """Asks an agent to run functions, as the runner does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serializer = ComputeSerializer(strategy_code=PureSourceDill())

    def body(self, function: Callable[..., Any], *args: Any) -> bytes:
        parts = [self.serializer.serialize(part) for part in (function, args, {})]
        return self.serializer.pack_buffers(parts).encode()

    def header(self, **changes: Any) -> dict[str, Any]:
        task = changes.pop("task", {})
        lasting = {
            "cwd": str(self.folder),
            "env": {},
            "limit": 1 << 20,
            "allowed": None,
            "result_serializers": None,
        }
        return {"lasting": {**lasting, **changes}, "task": task}

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
