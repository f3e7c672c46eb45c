"""Whoever of a real endpoint is killed: nothing of its containers is left.

Each test has a process with an engine, Parsl's interchange, its manager and two
workers, and kills one of them, or a process group, with SIGKILL.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import ComputeSerializer

from integration.worker.tree import alive, descendants, parent, survivors, until
from integration.worker.tree import processes as everyone
from loopback import processes

from .conftest import keeper_of, pool_folder, worker_process

pytestmark = pytest.mark.apptainer

MARK = "GCA_LIFETIME_TEST"
SECONDS = 120

# Submits what it reads, writes down the results, and stops at the end of its input.
ENGINE = """
import json, sys, uuid
from pathlib import Path
from globus_compute_endpoint.engines import GCFuture
from parsl.providers import LocalProvider
from globus_compute_apptainer.endpoint.engine import ApptainerEngine

def write(future):
    path = answers / str(future.gc_task_id)
    path.with_suffix(".part").write_bytes(future.result())
    path.with_suffix(".part").rename(path)

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    run_dir, answers = Path(settings["run_dir"]), Path(settings["answers"])
    engine = ApptainerEngine(
        address="127.0.0.1", max_workers_per_node=2,
        heartbeat_period=1, heartbeat_threshold=5,
        provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1),
        job_status_kwargs={"strategy_period": 0.2},
        working_dir=settings["working_dir"], containers=settings["containers"])
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(run_dir))
    for line in sys.stdin:
        task_id, path = json.loads(line)
        future = GCFuture(uuid.UUID(task_id))
        future.add_done_callback(write)
        engine.submit(future, Path(path).read_bytes(), settings["resources"])
    engine.shutdown()
"""


def hold_a_worker(started: str, goes_on: str) -> str:
    """Says who it is, leaves a process behind, and runs until it is told to end."""
    import os
    import subprocess

    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(started, "w") as fifo:
        fifo.write(f"{os.environ['PARSL_WORKER_RANK']} {os.getpid()}")
    with open(goes_on) as fifo:
        return fifo.read()


class Task:
    """A task that runs, known by two named pipes.

    :param rank: of the worker that it runs on
    :param pid: of the process in the container
    """

    def __init__(self, endpoint: Endpoint, pack_task: Any) -> None:
        name = uuid.uuid4().hex
        started = endpoint.working_dir / f"{name}-started"
        self._goes_on = endpoint.working_dir / f"{name}-goes-on"
        for fifo in (started, self._goes_on):
            os.mkfifo(fifo)
        reader = os.open(started, os.O_RDONLY | os.O_NONBLOCK)
        self.id = endpoint.submit(
            *pack_task(hold_a_worker, str(started), str(self._goes_on))
        )
        assert select.select([reader], [], [], SECONDS)[0], "the task does not start"
        rank, pid = os.read(reader, 100).decode().split()
        os.close(reader)
        self.rank, self.pid = rank, int(pid)

    @property
    def guard(self) -> int:
        return parent(self.pid)

    @property
    def zygote(self) -> int:
        return parent(self.guard)

    def end(self) -> None:
        self._goes_on.write_text("well")


class Endpoint:
    """A process with an engine, in a process group of its own."""

    def __init__(self, folder: Path, cache: Path, registry: str) -> None:
        self.run_dir, self.working_dir = folder / "run", folder / "tasks"
        self._answers = folder / "answers"
        for path in (self.run_dir, self.working_dir, self._answers):
            path.mkdir()
        settings = {
            "run_dir": str(self.run_dir),
            "working_dir": str(self.working_dir),
            "answers": str(self._answers),
            "containers": {
                "cache_dir": str(cache),
                "build": {"http_registries": [registry]},
            },
            "resources": {
                "container": {"base_image": f"{registry}/python:3.11-slim"},
            },
        }
        script = folder / "engine.py"
        script.write_text(ENGINE)
        self._mark = uuid.uuid4().hex
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # without SPT_NOENV, process titles overwrite the memory that holds the mark
        own = {MARK: self._mark, "SPT_NOENV": "1", "PATH": path}
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(settings)],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def submit(self, task_id: uuid.UUID, packed: bytes) -> str:
        path = self.working_dir / f"{task_id}.task"
        path.write_bytes(packed)
        assert self.process.stdin is not None
        print(
            json.dumps([str(task_id), str(path)]), file=self.process.stdin, flush=True
        )
        return str(task_id)

    def answer(self, task: Task) -> bytes:
        path = self._answers / task.id
        until(path.exists, "no answer")
        return path.read_bytes()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(SECONDS) == 0

    def everything(self) -> dict[int, str]:
        return processes.marked(f"{MARK}={self._mark}")

    @property
    def interchange(self) -> int:
        (found,) = [
            pid
            for pid, (above, command) in everyone().items()
            if above == self.process.pid and "interchange" in command
        ]
        return found


class Pool:
    """The worker pool that runs two tasks."""

    def __init__(self, endpoint: Endpoint, *tasks: Task) -> None:
        self.workers = [worker_process(endpoint.run_dir, task.rank) for task in tasks]
        (self.manager,) = {parent(worker) for worker in self.workers}
        self.group = os.getpgid(self.manager)
        self.folder = pool_folder(self.manager)

    def everything(self) -> dict[int, str]:
        """All that is to go with it; what serves Python's own ``multiprocessing`` in
        the manager outlives it, if that is killed, on the stock engine too."""
        known, keeper = everyone(), keeper_of(self.manager)
        own = {p: known[p][1] for p in (self.manager, keeper, *self.workers)}
        return descendants(keeper, *self.workers) | own


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def endpoint(tmp_path: Path, cache: Path, registry: str) -> Iterator[Endpoint]:
    before = mounts()
    made = Endpoint(tmp_path, cache, registry)
    yield made
    processes.kill(made.everything())
    made.process.wait(SECONDS)
    assert processes.wait_gone(made.everything, SECONDS) == {}
    until(lambda: mounts() <= before, "a mount is left")


@pytest.fixture
def begin(endpoint: Endpoint, pack_task: Any) -> Callable[[], Task]:
    return lambda: Task(endpoint, pack_task)


@pytest.fixture
def two_tasks(begin: Callable[[], Task]) -> tuple[Task, Task]:
    """One on each worker, in one container."""
    first, second = begin(), begin()
    assert first.rank != second.rank
    assert first.zygote == second.zygote
    return first, second


@pytest.fixture
def value(unpack_result: Any) -> Callable[[bytes], Any]:
    def value(packed: bytes) -> Any:
        result = unpack_result(packed)
        assert not result.is_error, result.data
        return ComputeSerializer().deserialize(result.data)

    return value


def nothing_is_left(pool: Pool, former: dict[int, str]) -> None:
    assert processes.wait_gone(lambda: survivors(former), SECONDS) == {}
    until(lambda: not pool.folder.exists(), "the pool's folder is left")


def interchange(endpoint: Endpoint, pool: Pool) -> None:
    os.kill(endpoint.interchange, signal.SIGKILL)


def manager(endpoint: Endpoint, pool: Pool) -> None:
    os.kill(pool.manager, signal.SIGKILL)


def group_of_the_pool(endpoint: Endpoint, pool: Pool) -> None:
    os.killpg(pool.group, signal.SIGKILL)


@pytest.mark.parametrize("kill", [interchange, manager, group_of_the_pool])
def test_with_the_pool_everything_goes(endpoint, two_tasks, value, kill) -> None:
    """While a task runs on one worker, and another worker's container is warm."""
    _, ends = two_tasks
    ends.end()
    assert value(endpoint.answer(ends)) == "well"
    pool = Pool(endpoint, *two_tasks)
    assert pool.group not in {os.getpgrp(), endpoint.process.pid}
    former = pool.everything()
    assert {task.pid for task in two_tasks} <= former.keys()
    text = " ".join(former.values())
    assert "Apptainer runtime" in text and "squashfuse" in text
    assert pool.folder.exists()
    kill(endpoint, pool)
    nothing_is_left(pool, former)


def test_the_endpoint_dies_and_containers_stay_as_long_as_their_pool(
    endpoint, two_tasks
) -> None:
    """Parsl's interchange outlives it, and so the manager and its workers do."""
    _, ends = two_tasks
    pool, above = Pool(endpoint, *two_tasks), endpoint.interchange
    former = pool.everything()
    endpoint.process.kill()
    endpoint.process.wait(SECONDS)
    ends.end()
    assert alive(former) == former.keys()
    os.kill(above, signal.SIGKILL)
    nothing_is_left(pool, former)


def test_a_worker_dies_and_the_other_s_task_goes_on(
    endpoint, begin, two_tasks, value, unpack_result
) -> None:
    doomed, task = two_tasks
    pool, zygote = Pool(endpoint, *two_tasks), doomed.zygote
    family = {doomed.guard, *descendants(doomed.guard)}
    os.kill(pool.workers[0], signal.SIGKILL)
    until(lambda: not alive(family), "the dead worker's task lives")
    assert unpack_result(endpoint.answer(doomed)).is_error

    again = begin()  # the other worker is busy: this one's was started anew
    assert (again.rank, again.zygote) == (doomed.rank, zygote)
    for other in (task, again):
        other.end()
        assert value(endpoint.answer(other)) == "well"
    pool = Pool(endpoint, task, again)
    former = pool.everything()
    endpoint.stop()
    nothing_is_left(pool, former)
