"""Running tasks in real containers, and on the stock engine for comparison."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceDill

from globus_compute_apptainer.worker import place, runner
from globus_compute_apptainer.worker.keeper.owner import start_of
from globus_compute_apptainer.worker.node import Node
from globus_compute_apptainer.worker.order import ContainerOrder
from globus_compute_apptainer.worker.terms import Terms

ENDPOINT = uuid.UUID("11111111-2222-3333-4444-555555555555")


def pack(
    function: Callable[..., Any], *args: Any, code: Any = None, **kwargs: Any
) -> tuple[bytes, uuid.UUID]:
    """Pack a call as the SDK does; by source, since workers lack test modules."""
    by_source = PureSourceDill() if hasattr(function, "__code__") else None
    serializer = ComputeSerializer(strategy_code=code or by_source)
    parts = [serializer.serialize(part) for part in (function, args, kwargs)]
    task_id = uuid.uuid4()
    task = Task(task_id=task_id, task_buffer=serializer.pack_buffers(parts))
    return messagepack.pack(task), task_id


def value(result: Result) -> Any:
    """What the user's future would hold."""
    assert result.error_details is None, result.data
    return ComputeSerializer().deserialize(result.data)


class Inside:
    """Runs functions in a container of ``order``, which tests may replace."""

    def __init__(self, order: ContainerOrder, run_dir: Path) -> None:
        self.order = order
        self.run_dir = run_dir

    def with_order(self, **changes: Any) -> Inside:
        return Inside(replace(self.order, **changes), self.run_dir)

    def message(self, packed: bytes, task_id: uuid.UUID, **options: Any) -> Result:
        answer = runner.run(packed, str(task_id), self.told(**options))
        message = messagepack.unpack(answer)
        assert isinstance(message, Result)
        return message

    def told(self, **options: Any) -> str:
        """What a worker is told with a task; options as of ``execute_task``."""
        for name in ("task_deserializers", "result_serializers"):
            options[name] = tuple(options.get(name) or ())
        run_dir = str(options.pop("run_dir", self.run_dir))
        return Terms(self.order, run_dir, str(ENDPOINT), **options).to_wire()

    def result(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Result:
        return self.message(*pack(function, *args, **kwargs))

    def value(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return value(self.result(function, *args, **kwargs))


@pytest.fixture
def order(python_sif: Path) -> ContainerOrder:
    return ContainerOrder(
        image=str(python_sif),
        size=python_sif.stat().st_size,
        spec_digest="sha256:" + "1" * 64,
        image_digest="sha256:" + "2" * 64,
        base="docker://python:3.11-slim",
        cache="hit",
        build_seconds=1.5,
        apptainer_version="1.4.5",
        python="/usr/bin/python3",
        python_version="3.11.2",
    )


@pytest.fixture
def inside(order: ContainerOrder, tmp_path_factory) -> Inside:
    """One run directory for all tests, so that they share a warm container."""
    run_dir = tmp_path_factory.getbasetemp() / "tasks_working_dir"
    return Inside(order, run_dir)


@pytest.fixture(scope="session", autouse=True)
def manager() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the process that started this worker: with it all containers go."""
    with subprocess.Popen(["sleep", "7200"]) as process:
        pool = place.Pool(process.pid, start_of(process.pid))
        runner._node = Node(lambda: pool)
        folder = place.folder(pool)
        yield process
        runner._pool.close()
        process.kill()
        process.wait()
        if not (folder / place.SOCKET).exists():
            shutil.rmtree(folder, ignore_errors=True)  # nobody asked
        deadline = time.monotonic() + 120
        while folder.exists():
            assert time.monotonic() < deadline, "the keeper has not ended"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def stock_process() -> Iterator[Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture
def stock(stock_process, inside: Inside) -> Callable[..., Result]:
    """Run a message on the stock engine's ``execute_task``, in its own process."""
    from globus_compute_endpoint.engines.helper import execute_task

    def message(packed: bytes, task_id: uuid.UUID, **options: Any) -> Result:
        environment = dict(os.environ)
        change = f"import os; os.environ.clear(); os.environ.update({environment!r})"
        stock_process.apply(exec, (change,))
        options.setdefault("run_dir", inside.run_dir)
        answer = stock_process.apply(execute_task, (packed, task_id, ENDPOINT), options)
        result = messagepack.unpack(answer)
        assert isinstance(result, Result)
        return result

    return message


@pytest.fixture
def packed() -> Callable[..., tuple[bytes, uuid.UUID]]:
    return pack


@pytest.fixture
def value_of() -> Callable[[Result], Any]:
    return value
