"""An engine whose executor runs tasks in this process, and images that are fake.

The fakes stand where a unit test must not need Apptainer or worker processes; the
same engine on the real parts is tested in ``tests/integration/endpoint``.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.engines import GCFuture
from parsl.executors import HighThroughputExecutor

from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.endpoint import engine as engine_module
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.store.cache import Store


class FakeExecutor(HighThroughputExecutor):
    """Parsl's executor, not started; records what is handed over."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(address="127.0.0.1", **kwargs)
        self.handed: list[tuple[dict[str, Any], bytes]] = []
        self.outcomes: list[Any] = []
        self._inside = threading.Lock()
        self.overlapped = False

    def start(self) -> None:
        """No processes here."""

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """No processes here either."""

    def connected_managers(self) -> list[dict[str, Any]]:
        return []

    def connected_managers_packages(self) -> dict[str, dict[str, str]]:
        return {}

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> Future[Any]:
        if not self._inside.acquire(blocking=False):
            self.overlapped = True
        else:
            self.handed.append((context, buffer))
            self._inside.release()
        future: Future[Any] = Future()
        future.parsl_executor_task_id = len(self.handed)  # type: ignore[attr-defined]
        outcome = self.outcomes.pop(0) if self.outcomes else b"the result"
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        return future


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def make_engine(
    tmp_path: Path,
    builder: Any,
    executor: FakeExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., ApptainerEngine]]:
    made: list[ApptainerEngine] = []

    def images(*_: Any) -> ImageService:
        return ImageService(
            Store(tmp_path / "cache"), lambda: builder, BuildConfig(tmp_dir=tmp_path)
        )

    def make(
        containers: dict[str, Any] | None = None, **kwargs: Any
    ) -> ApptainerEngine:
        block = {"cache_dir": str(tmp_path / "cache"), **(containers or {})}
        engine = ApptainerEngine(
            executor=executor, containers=block, strategy="none", **kwargs
        )
        made.append(engine)
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "open_service", images)
            engine.start(endpoint_id=uuid.uuid4(), run_dir=str(tmp_path))
        return engine

    yield make
    for engine in made:
        engine.shutdown()


@pytest.fixture
def engine(make_engine: Callable[..., ApptainerEngine]) -> ApptainerEngine:
    return make_engine()


@pytest.fixture
def future() -> GCFuture:
    return GCFuture(uuid.uuid4())
