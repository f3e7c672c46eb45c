"""Tasks that wait when the endpoint process is killed, on real parts: a process with an
engine, Parsl's interchange and a worker, SIGKILL, and a second such process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import ComputeSerializer

from globus_compute_apptainer.endpoint import journal
from loopback import processes
from provision.web import Web, served

pytestmark = pytest.mark.apptainer

TASKS = 12
SECONDS = 300
MARK = "GCA_RESTART_TEST"

# What the interchange does with an engine: starts it in the endpoint's directory,
# submits, and looks for results that came back otherwise.
ENGINE = """
import json, sys, time, uuid
from pathlib import Path
from globus_compute_endpoint.endpoint.result_store import ResultStore
from globus_compute_endpoint.engines import GCFuture
from parsl.providers import LocalProvider
from globus_compute_apptainer.endpoint.engine import ApptainerEngine

if __name__ == "__main__":
    run_dir, block, tasks, results = (json.loads(a) for a in sys.argv[1:])
    store = ResultStore(run_dir)
    engine = ApptainerEngine(
        address="127.0.0.1", max_workers_per_node=1, heartbeat_period=2,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
        job_status_kwargs={"strategy_period": 0.2}, containers=block)
    engine.start(endpoint_id=uuid.uuid4(), run_dir=run_dir)
    futures = []
    for task_id, path, container in tasks:
        futures.append(GCFuture(task_id, function_id=uuid.uuid4()))
        resources = {"container": container}
        engine.submit(futures[-1], Path(path).read_bytes(), resources, [])
    print(json.dumps(engine._images.counts()), flush=True)
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and not (
        len(list(store)) >= results and all(f.done() for f in futures)):
        time.sleep(0.1)
    engine.shutdown()
    print(json.dumps({"answered": [f.done() for f in futures]}), flush=True)
"""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with served(tmp_path) as made:
        yield made


@pytest.fixture
def spec(registry: str, web: Web) -> Iterator[dict[str, Any]]:
    """Its image cannot be finished before ``released`` is set."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("only_here.py")
        entry.size = len(text := b"answer = 42\n")
        archive.addfile(entry, io.BytesIO(text))
    url, released = web.held_back("/it.tar", buffer.getvalue())
    made = {"base_image": f"{registry}/python:3.11-slim", "payload_url": url}
    yield {"spec": made, "released": released}
    released.set()


@pytest.fixture
def engine_process(tmp_path: Path, registry: str) -> Iterator[Any]:
    """``engine_process(tasks, results)``: one that lives until there are so many."""
    script, run_dir = tmp_path / "engine.py", tmp_path / "endpoint"
    script.write_text(ENGINE)
    run_dir.mkdir()
    block = {
        "cache_dir": str(tmp_path / "cache"),
        "build": {"http_registries": [registry]},
        "policy": {"payload_urls": ["http://127.0.0.1:*"]},
    }
    mark = uuid.uuid4().hex
    # without SPT_NOENV, process titles overwrite the memory that holds the mark
    environ = {**os.environ, MARK: mark, "SPT_NOENV": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start(tasks: list[Any], results: int) -> subprocess.Popen[str]:
        arguments = [str(run_dir), block, tasks, results]
        return subprocess.Popen(
            [sys.executable, script, *map(json.dumps, arguments)],
            env={**environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def leftovers() -> dict[int, str]:
        return processes.marked(f"{MARK}={mark}")

    start.run_dir, start.leftovers = run_dir, leftovers  # type: ignore[attr-defined]
    yield start
    processes.kill(leftovers())
    assert processes.wait_gone(leftovers, 60) == {}


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def answer(number: int) -> int:
    import only_here

    return only_here.answer + number


def test_tasks_that_wait_survive_a_sigkill_and_are_answered_by_the_next_process(
    engine_process, spec, pack_task, unpack_result, tmp_path
) -> None:
    tasks = []
    for number in range(TASKS):
        task_id, packed = pack_task(answer, number)
        path = tmp_path / f"{number}.task"
        path.write_bytes(packed)
        tasks.append([str(task_id), str(path), spec["spec"]])
    folder = engine_process.run_dir / journal.FOLDER

    with engine_process(tasks, 1) as first:
        assert told(first)["waiting_tasks"] == TASKS
        os.kill(first.pid, signal.SIGKILL)
    assert len(list(folder.iterdir())) == TASKS
    orphans = engine_process.leftovers()
    assert any("interchange" in line for line in orphans.values())
    processes.kill(orphans)
    assert processes.wait_gone(engine_process.leftovers, 60) == {}

    with engine_process(tasks[:2], TASKS - 2) as second:
        # Two of them are delivered again, since their receipt was never confirmed.
        assert told(second)["waiting_tasks"] == TASKS
        spec["released"].set()
        assert told(second) == {"answered": [True, True]}
        with contextlib.suppress(subprocess.TimeoutExpired):
            second.wait(60)
    assert list(folder.iterdir()) == []
    stored = engine_process.run_dir / "unacked_results"
    results = {path.name: unpack_result(path.read_bytes()) for path in stored.iterdir()}
    assert set(results) == {task_id for task_id, _, _ in tasks[2:]}
    values = {
        task_id: ComputeSerializer().deserialize(result.data)
        for task_id, result in results.items()
    }
    assert values == {tasks[n][0]: 42 + n for n in range(2, TASKS)}
