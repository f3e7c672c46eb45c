"""Where the benchmark works: a registry, a cache of images, and engines to compare.

Every engine is a real one with its interchange, manager and workers on this machine,
all with the same settings. They are started once and stay, idle while another is
measured.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from parsl.providers import LocalProvider

from bench.run import tasks
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.endpoint.order import container_order
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.worker.order import ContainerOrder
from globus_compute_apptainer.worker.terms import Terms
from provision import services

PATIENCE_SECONDS = 900


class Side:
    """A running engine, and what its tasks are submitted with."""

    def __init__(self, engine: Any, spec: Mapping[str, Any] | None = None) -> None:
        self.engine = engine
        self._spec = spec

    def submit(
        self, task: tuple[uuid.UUID, bytes], spec: Mapping[str, Any] | None = None
    ) -> GCFuture:
        task_id, message = task
        future = GCFuture(task_id)
        spec = spec or self._spec
        self.engine.submit(future, message, {"container": spec} if spec else {})
        return future

    def run(self, task: tuple[uuid.UUID, bytes], spec: Any = None) -> Any:
        return tasks.value(self.submit(task, spec).result(PATIENCE_SECONDS))

    @property
    def blocks(self) -> int:
        """How many blocks of workers it has started."""
        return len(self.engine.executor.blocks_to_job_id)


class Stage:
    """All that cases need; engines are started when they are first asked for."""

    def __init__(self, folder: Path, registry: str, stack: contextlib.ExitStack):
        self.folder, self.registry, self._stack = folder, registry, stack
        self.base: dict[str, Any] = {"base_image": f"{registry}/python:3.11-slim"}
        self._runs = 0

    @cached_property
    def host(self) -> Side:
        """The stock engine, on the host."""
        return Side(self._started(GlobusComputeEngine))

    @cached_property
    def upstream(self) -> Side:
        """The stock engine with ``container_type: apptainer``: workers in an image."""
        run_dir = self._run_dir()
        engine = self._started(
            GlobusComputeEngine,
            run_dir,
            container_type="apptainer",
            container_uri=str(self._image_with_worker()),
            container_cmd_options=f"--bind {run_dir}",
        )
        return Side(engine)

    @cached_property
    def ours(self) -> Side:
        return Side(self.engine(), self.base)

    @cached_property
    def roomy(self) -> Side:
        """Ours, with room for sixteen warm containers."""
        return Side(self.engine(run={"warm_per_worker": 16}), self.base)

    def engine(self, *, workers: int = 2, **containers: Any) -> ApptainerEngine:
        block = {**self._containers(), **containers}
        return self._started(ApptainerEngine, containers=block, workers=workers)

    def image(self, spec: Mapping[str, Any]) -> Path:
        """Path of the image of a spec, with all that belongs to it."""
        report = self._cli("build", "--json", json.dumps(spec))
        return Path(json.loads(report)["path"])

    def order(self, spec: Mapping[str, Any]) -> ContainerOrder:
        """What the engine tells a worker about a container of ``spec``."""
        engine = ApptainerEngine(address="127.0.0.1", containers=self._containers())
        wanted = engine._requests.wanted(spec)
        from globus_compute_apptainer.images import open_service

        with contextlib.closing(open_service(engine._config, os.environ)) as service:
            ready = service.request(wanted.image).result(PATIENCE_SECONDS)
            service.settle()
        return container_order(ready, wanted.run, engine._config)

    def with_preload(self, spec: Mapping[str, Any], *modules: str) -> dict[str, Any]:
        """The spec, with these modules imported ahead where that is supported."""
        asked = {**spec, "preload": list(modules)}
        try:
            model.parse(asked)
        except SpecError:
            return dict(spec)
        return asked

    def _image_with_worker(self) -> Path:
        target = self.folder / "with-worker"
        version = importlib.metadata.version("globus-compute-endpoint")
        spec = {**self.base, "pip": [f"globus-compute-endpoint=={version}"]}
        # Exported, it has its bytecode in it, as an image that is built elsewhere has.
        self._cli("export", json.dumps(spec), str(target))
        return target / "image.sif"

    def _containers(self) -> dict[str, Any]:
        return {
            "cache_dir": str(self.folder / "cache"),
            "build": {"http_registries": [self.registry]},
        }

    def _cli(self, verb: str, *arguments: str) -> str:
        config = self.folder / "containers.yaml"
        config.write_text(yaml.safe_dump({"containers": self._containers()}))
        argv = [sys.executable, "-m", "globus_compute_apptainer.cli.main", verb]
        argv += ["--config", str(config), *arguments]
        return subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        ).stdout

    def _run_dir(self) -> Path:
        self._runs += 1
        folder = self.folder / f"run-{os.getpid()}-{self._runs}"
        folder.mkdir(parents=True)
        return folder

    def _started(
        self, kind: Any, run_dir: Path | None = None, workers: int = 2, **settings: Any
    ) -> Any:
        engine = kind(
            address="127.0.0.1",
            max_workers_per_node=workers,
            cores_per_worker=0.1,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
            job_status_kwargs={"strategy_period": 0.5, "max_idletime": 3600.0},
            **settings,
        )
        # A signal to the whole group must not end the interchange first: Parsl would
        # wait for it, for ever.
        launch = engine.executor.interchange_launch_cmd
        engine.executor.interchange_launch_cmd = ["setsid", *launch]
        where = run_dir or self._run_dir()
        engine.start(endpoint_id=uuid.uuid4(), run_dir=str(where))
        self._stack.callback(engine.shutdown)
        return engine


@contextlib.contextmanager
def stage(folder: Path, store: Path) -> Iterator[Stage]:
    """Open ``folder``, with a registry that holds the bases of ``store``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{path}"
    with services.registry(store) as address, contextlib.ExitStack() as stack:
        yield Stage(folder, address, stack)


def new_worker(order: ContainerOrder, run_dir: Path) -> subprocess.Popen[str]:
    """A process that does with tasks what a worker does; see ``worker.py``."""
    argv: Sequence[str] = (
        sys.executable,
        str(Path(__file__).with_name("worker.py")),
        Terms(order, str(run_dir)).to_wire(),
    )
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
