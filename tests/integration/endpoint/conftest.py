"""Engines on real parts, and tasks for them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.engines import GCFuture
from globus_compute_sdk.serialize import ComputeSerializer
from parsl.providers import LocalProvider

from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.worker import place
from globus_compute_apptainer.worker.keeper.owner import start_of
from integration.worker.tree import processes

MakeEngine = Callable[..., ApptainerEngine]


def worker_process(run_dir: str | Path, rank: str) -> int:
    """An HTEX worker process, by the log that it writes."""
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            file = os.readlink(fd)
            if f"{run_dir}/" in file and file.endswith(f"/worker_{rank}.log"):
                return int(fd.parts[2])
    raise LookupError(rank)


def pool_folder(manager: int) -> Path:
    """The folder of the workers that are this process's."""
    return place.folder(place.Pool(manager, start_of(manager)))


def keeper_of(manager: int) -> int:
    folder = f" {pool_folder(manager)} "
    (found,) = [p for p, (_, command) in processes().items() if folder in command]
    return found


@pytest.fixture(scope="module")
def make_engine(
    tmp_path_factory: pytest.TempPathFactory, registry: str
) -> Iterator[MakeEngine]:
    made: list[ApptainerEngine] = []
    cache = tmp_path_factory.mktemp("cache")

    def make(
        containers: dict[str, Any] | None = None, **kwargs: Any
    ) -> ApptainerEngine:
        block = {
            "cache_dir": str(cache),
            "build": {"http_registries": [registry], "timeout": "10m"},
            **(containers or {}),
        }
        engine = ApptainerEngine(
            address="127.0.0.1",
            max_workers_per_node=2,
            provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1),
            containers=block,
            job_status_kwargs={"strategy_period": 0.2},
            **{"heartbeat_period": 2, **kwargs},
        )
        made.append(engine)
        run_dir = tmp_path_factory.mktemp("run")
        engine.start(endpoint_id=uuid.uuid4(), run_dir=str(run_dir), monitored=True)
        return engine

    make.forget = made.remove  # type: ignore[attr-defined]
    yield make
    for engine in made:
        engine.shutdown()


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> ApptainerEngine:
    return make_engine()


@pytest.fixture
def submit(pack_task: Any) -> Callable[..., GCFuture]:
    def submit(
        engine: ApptainerEngine, spec: object, function: Any, *args: Any
    ) -> GCFuture:
        task_id, packed = pack_task(function, *args)
        future = GCFuture(task_id)
        resources = {} if spec is None else {"container": spec}
        engine.submit(future, packed, resources)
        return future

    return submit


@pytest.fixture
def value(unpack_result: Any) -> Callable[[GCFuture], Any]:
    def value(future: GCFuture, timeout: float = 300) -> Any:
        result = unpack_result(future.result(timeout))
        assert not result.is_error, result.data
        return ComputeSerializer().deserialize(result.data)

    return value


@pytest.fixture
def spec(registry: str) -> dict[str, Any]:
    return {"base_image": f"{registry}/python:3.11-slim", "pip": ["humanize"]}
