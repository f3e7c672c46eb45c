"""What a task in a container costs beside one on the host. Prints ratios.

Interleaved rounds on this machine: a no-op through the worker's function and through
the stock engine's; a new worker's first no-op where the container runs already; and
the start of a container against ``apptainer exec IMAGE python3 -c pass``. Needs
Apptainer and what ``tests/provision/provision`` makes.

    tests/provision/as-test-user python tests/bench/tasks.py [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from globus_compute_common import messagepack  # noqa: E402
from globus_compute_common.messagepack.message_types import Task  # noqa: E402
from globus_compute_endpoint.engines.helper import execute_task  # noqa: E402
from globus_compute_sdk.serialize import (  # noqa: E402
    ComputeSerializer,
    PureSourceTextInspect,
)

from globus_compute_apptainer.build.apptainer import Apptainer  # noqa: E402
from globus_compute_apptainer.worker import runner  # noqa: E402
from globus_compute_apptainer.worker.order import ContainerOrder  # noqa: E402


def nothing():
    return None


def packed() -> tuple[bytes, uuid.UUID]:
    serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    parts = [serializer.serialize(part) for part in (nothing, (), {})]
    task_id = uuid.uuid4()
    task = Task(task_id=task_id, task_buffer=serializer.pack_buffers(parts))
    return messagepack.pack(task), task_id


def milliseconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def show(name: str, figures: list[float], than: list[float] | None = None) -> None:
    median = statistics.median(figures)
    line = f"{name:46} {median:9.3f} ms"
    if than is not None:
        line += f"   {median / statistics.median(than):5.2f}x"
    print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="a SIF with a Python")
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    image = Path(arguments.image)
    order = ContainerOrder(
        image=str(image),
        size=image.stat().st_size,
        spec_digest="sha256:" + "0" * 64,
        image_digest="sha256:" + "0" * 64,
        base="docker://python:3.11-slim",
        cache="hit",
        build_seconds=0.0,
        apptainer_version="",
        python=arguments.python,
        python_version="3.11",
    )
    message = packed()
    apptainer = Apptainer.find()
    with tempfile.TemporaryDirectory() as run_dir:

        def ours(order: ContainerOrder) -> Callable[[], object]:
            wire = order.to_wire()
            return lambda: runner.run(*message, run_dir=run_dir, container=wire)

        def stock() -> object:
            return execute_task(*message, run_dir=run_dir)

        def bare() -> object:
            command = [arguments.python, "-c", "pass"]
            return subprocess.run(
                apptainer.exec_argv(image, command),
                env=apptainer.environment(),
                capture_output=True,
                check=True,
            )

        figures: dict[str, list[float]] = {}

        def take(name: str, action: Callable[[], object]) -> None:
            figures.setdefault(name, []).append(milliseconds(action))

        ours(order)(), stock()
        for n in range(arguments.rounds):
            fresh = replace(order, env=(("ROUND", str(n)),), idle_timeout=1.0)
            take("bare", bare)
            take("start", ours(fresh))
            runner._pool.close()
            ours(order)()
            for _ in range(10):
                runner._pool.close()
                time.sleep(0.06)  # the next child has been forked meanwhile
                take("new", ours(order))
            for _ in range(200):
                take("stock", stock)
                take("warm", ours(order))
        runner._pool.close()
    show("apptainer exec IMAGE python3 -c pass", figures["bare"])
    show("first task of a container", figures["start"], figures["bare"])
    show("first task of a new worker", figures["new"])
    show("no-op on the stock engine", figures["stock"])
    show("no-op in a warm container", figures["warm"], figures["stock"])


if __name__ == "__main__":
    main()
