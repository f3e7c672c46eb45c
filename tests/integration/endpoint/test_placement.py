"""Where HTEX puts a worker, its container tasks are: the same processors and
accelerators, and the same variables, as a task of the stock engine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from parsl.providers import LocalProvider

from integration.worker.tree import descendants, parent

from .conftest import keeper_of, worker_process

pytestmark = pytest.mark.apptainer

WORKERS = 2
# Names of a pool, of which two engines have one each.
OF_THE_POOL = {"PARSL_WORKER_POOL_ID"}


def where_am_i(begun: str, workers: int) -> dict[str, Any]:
    """Holds its worker until all of them have a task."""
    import os
    import re
    import subprocess
    import threading
    import time

    open(os.path.join(begun, os.environ["PARSL_WORKER_RANK"]), "w").close()
    deadline = time.monotonic() + 300
    while len(os.listdir(begun)) < workers and time.monotonic() < deadline:
        time.sleep(0.02)

    def processors(_: object = None) -> list[int]:
        return sorted(os.sched_getaffinity(0))

    def allowed(status: str) -> str:
        return re.findall("Cpus_allowed_list:\\s*(.*)", status)[0]

    in_a_thread: list[list[int]] = []
    thread = threading.Thread(target=lambda: in_a_thread.append(processors()))
    thread.start()
    thread.join()
    shell = ["sh", "-c", "sh -c 'cat /proc/self/status'"]
    below = subprocess.run(shell, capture_output=True, text=True, check=True)
    with open("/proc/self/status") as own:
        assert allowed(below.stdout) == allowed(own.read())
    parsl_sets = (
        r"(PARSL|OMP|GOMP|KMP)_.*|(CUDA|ROCR)_VISIBLE_DEVICES"
        r"|ZE_AFFINITY_MASK|ZE_ENABLE_PCI_ID_DEVICE_ORDER"
    )
    variables = {n: v for n, v in os.environ.items() if re.fullmatch(parsl_sets, n)}
    return {
        "inside": "APPTAINER_CONTAINER" in os.environ,
        "processors": [processors(), *in_a_thread],
        "allowed": allowed(below.stdout),
        "variables": variables,
    }


@pytest.fixture
def stock(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., GlobusComputeEngine]]:
    made: list[GlobusComputeEngine] = []

    def make(**kwargs: Any) -> GlobusComputeEngine:
        engine = GlobusComputeEngine(
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1),
            job_status_kwargs={"strategy_period": 0.2},
            heartbeat_period=2,
            **kwargs,
        )
        made.append(engine)
        run_dir = tmp_path_factory.mktemp("stock")
        engine.start(endpoint_id=uuid.uuid4(), run_dir=str(run_dir))
        return engine

    yield make
    for engine in made:
        engine.shutdown()


@pytest.fixture
def everywhere(submit, value) -> Callable[..., list[dict[str, Any]]]:
    """``everywhere(engine, spec)``: what tasks find, one on each worker, by rank."""

    def everywhere(engine: Any, spec: object) -> list[dict[str, Any]]:
        begun = Path(engine.working_dir) / uuid.uuid4().hex
        begun.mkdir(parents=True)
        asked: list[GCFuture] = [
            submit(engine, spec, where_am_i, str(begun), WORKERS)
            for _ in range(WORKERS)
        ]
        found = [value(future) for future in asked]
        assert {answer.pop("inside") for answer in found} == {spec is not None}
        return sorted(
            found, key=lambda answer: answer["variables"]["PARSL_WORKER_RANK"]
        )

    return everywhere


def apart_from_the_pool(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def less(answer: dict[str, Any]) -> dict[str, Any]:
        known = answer["variables"].items()
        return {**answer, "variables": {n: v for n, v in known if n not in OF_THE_POOL}}

    return [less(answer) for answer in found]


@pytest.mark.parametrize(
    ("affinity", "accelerators", "names"),
    [
        ("block", 2, ["0", "1"]),
        ("block-reverse", ["first", "GPU-5:second"], ["first", "GPU-5:second"]),
        ("alternating", [], [None, None]),
    ],
)
def test_container_tasks_are_where_the_stock_engine_s_are(
    make_engine, stock, everywhere, spec, affinity, accelerators, names
) -> None:
    options = {"cpu_affinity": affinity, "available_accelerators": accelerators}
    engine, other = make_engine(**options), stock(**options)
    ours = everywhere(engine, spec)
    assert ours == everywhere(engine, None)
    assert ours == everywhere(engine, spec)  # when the container is warm
    theirs = everywhere(other, None)
    assert apart_from_the_pool(ours) == apart_from_the_pool(theirs)

    first, second = (set(answer["processors"][0]) for answer in ours)
    assert first and second and not first & second
    for answer, name in zip(ours, names, strict=True):
        assert answer["processors"] == [answer["processors"][0]] * 2
        variables = answer["variables"]
        assert variables["OMP_NUM_THREADS"] == str(len(answer["processors"][0]))
        for accelerator in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            assert variables.get(accelerator) == name
        assert variables.get("ZE_AFFINITY_MASK") == name


def test_what_serves_the_images_has_the_processors_of_all_workers(
    make_engine, everywhere, spec
) -> None:
    """Though the first worker, which has its own, started it."""
    engine = make_engine(cpu_affinity="block")
    everywhere(engine, spec)
    manager = parent(worker_process(engine.run_dir, "0"))
    below = descendants(keeper_of(manager))
    serving = [pid for pid, command in below.items() if "fuse" in command]
    assert serving
    for pid in serving:
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(manager)
