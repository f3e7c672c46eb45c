"""The stock engine with its worker pool in a spec-built image, by its template."""

from __future__ import annotations

import json
import pwd
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from globus_compute_endpoint.endpoint.config.utils import render_config_user_template
from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from parsl.providers import LocalProvider

pytestmark = pytest.mark.apptainer

TEMPLATE = Path(__file__).parents[3] / "endpoint_templates" / "stock-engine"


def where_am_i(number: int) -> dict[str, Any]:
    import os
    import sys

    return {
        "number": number,
        "image": os.environ.get("APPTAINER_CONTAINER"),
        "python": sys.executable,
        "sandbox": os.getcwd() == os.environ.get("GC_TASK_SANDBOX_DIR"),
        "engine": any(
            name.startswith("globus_compute_apptainer") for name in sys.modules
        ),
    }


def rendered(config: Path) -> dict[str, Any]:
    """The template's engine, as upstream renders it, with our place of the images."""
    source = TEMPLATE / "user_config_template.yaml.j2"
    text = source.read_text()
    assert text.count("~/.globus_compute/containers.yaml") == 1
    schema = json.loads((TEMPLATE / "user_config_schema.json").read_text())
    identity = mock.Mock(local_user_record=pwd.getpwuid(0))
    made = render_config_user_template(
        mock.Mock(),
        text.replace("~/.globus_compute/containers.yaml", str(config)),
        source,
        identity,
        schema,
        {"image": "with-worker", "max_workers_per_node": 1},
        {},
    )
    engine = yaml.safe_load(made)["engine"]
    assert engine.pop("type") == "GlobusComputeEngine"
    assert engine.pop("provider").pop("type") == "LocalProvider"
    return engine


@pytest.fixture
def engine(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GlobusComputeEngine]:
    worker = f"globus-compute-endpoint=={version('globus-compute-endpoint')}"
    block = {
        "cache_dir": str(tmp_path / "cache"),
        "build": {"http_registries": [registry]},
        "images": {
            "with-worker": {
                "base_image": f"{registry}/python:3.11-slim",
                "pip": [worker],
            }
        },
    }
    config = tmp_path / "containers.yaml"
    config.write_text(yaml.safe_dump({"containers": block}))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    engine = GlobusComputeEngine(
        **rendered(config),
        provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1),
        job_status_kwargs={"strategy_period": 0.2},
    )
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(run_dir))
    yield engine
    engine.shutdown()


def test_tasks_of_the_stock_engine_run_in_the_image(
    engine: GlobusComputeEngine, pack_task, unpack_result, tmp_path: Path
) -> None:
    from globus_compute_sdk.serialize import ComputeSerializer

    for number in range(3):
        task_id, packed = pack_task(where_am_i, number)
        future = GCFuture(task_id)
        engine.submit(future, packed, {})
        result = unpack_result(future.result(500))
        assert not result.is_error, result.data
        found = ComputeSerializer().deserialize(result.data)
        assert found.pop("image").startswith(str(tmp_path / "cache"))
        assert found == {
            "number": number,
            "python": "/.gc-apptainer/env/bin/python",
            "sandbox": True,
            "engine": False,
        }
