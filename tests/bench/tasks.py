"""What a task in a container costs beside one on the host. Prints ratios.

Interleaved rounds on this machine: a no-op through the worker's function and through
the stock engine's; a new worker's first no-op where the container runs already; and
the start of a container against ``apptainer exec IMAGE python3 -c pass``. Needs
Apptainer and what ``tests/provision/provision`` makes.

    tests/provision/as-test-user python tests/bench/tasks.py --image SIF [--rounds N]
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
from globus_compute_apptainer.worker.terms import Terms  # noqa: E402

KINDS = (1, 4, 16)


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


class Bench:
    """Measures, and remembers the figures by name."""

    def __init__(self, order: ContainerOrder, run_dir: str) -> None:
        self.order, self._run_dir, self._message = order, run_dir, packed()
        self._apptainer = Apptainer.find()
        self.figures: dict[str, list[float]] = {}

    def take(self, name: str, action: Callable[[], object]) -> None:
        self.figures.setdefault(name, []).append(milliseconds(action))

    def ours(self, **changes: object) -> Callable[[], object]:
        order = replace(self.order, **changes)  # type: ignore[arg-type]
        told = Terms(order, self._run_dir).to_wire()
        packed, task_id = self._message
        return lambda: runner.run(packed, str(task_id), told)

    def stock(self) -> object:
        return execute_task(*self._message, run_dir=self._run_dir)

    def bare(self) -> object:
        command = [self.order.python or "", "-c", "pass"]
        return subprocess.run(
            self._apptainer.exec_argv(self.order.image, command),
            env=self._apptainer.environment(),
            capture_output=True,
            check=True,
        )

    def round(self, number: int) -> None:
        fresh = self.ours(env=(("ROUND", str(number)),), idle_timeout=1.0)
        self.take("bare", self.bare)
        self.take("start", fresh)
        runner._pool.close()
        self.ours()()
        for _ in range(10):
            runner._pool.close()
            time.sleep(0.06)  # the next child has been forked meanwhile
            self.take("new", self.ours())
        for _ in range(200):
            self.take("stock", self.stock)
            self.take("warm", self.ours())
        self.kinds(first=number == 0)

    def kinds(self, *, first: bool) -> None:
        for number in KINDS:
            for turn in range(3 * max(KINDS)):
                one = self.ours(env=(("KIND", str(turn % number)),))
                if first and turn < number:
                    one()
                self.take(f"{number} kinds", one)

    def show(self, label: str, name: str, than: str = "") -> None:
        median = statistics.median(self.figures[name])
        line = f"{label:46} {median:9.3f} ms"
        if than:
            line += f"   {median / statistics.median(self.figures[than]):5.2f}x"
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
    with tempfile.TemporaryDirectory() as run_dir:
        bench = Bench(order, run_dir)
        bench.ours()(), bench.stock()
        for number in range(arguments.rounds):
            bench.round(number)
        runner._pool.close()
    bench.show("apptainer exec IMAGE python3 -c pass", "bare")
    bench.show("first task of a container", "start", "bare")
    bench.show("first task of a new worker", "new")
    bench.show("no-op on the stock engine", "stock")
    bench.show("no-op in a warm container", "warm", "stock")
    for number in KINDS:
        label = f"no-op, {number} kinds of container in turn"
        bench.show(label, f"{number} kinds", "1 kinds")


if __name__ == "__main__":
    main()
