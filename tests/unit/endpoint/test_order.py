"""What a worker is told of an image and of how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.order import container_order
from globus_compute_apptainer.images import ImageService, Ready
from globus_compute_apptainer.spec.model import RunSpec, parse
from globus_compute_apptainer.store.cache import BYTECODE, Store
from globus_compute_apptainer.worker.order import ContainerOrder


@pytest.fixture
def ready(builder, tmp_path: Path) -> Ready:
    config = configured(tmp_path)
    service = ImageService(Store(config.cache_dir), lambda: builder, config.build)
    image = parse({"pip": ["pandas"]}).image_spec(
        default_base=config.default_base, python="3.11"
    )
    try:
        return service.request(image).result(60)
    finally:
        service.close()


def configured(tmp_path: Path, **run: object) -> ContainersConfig:
    return ContainersConfig.parse({"cache_dir": str(tmp_path / "cache"), "run": run})


def test_image_spec_and_configuration_all_have_their_say(
    ready: Ready, tmp_path: Path
) -> None:
    config = configured(
        tmp_path, isolation="task", options=["--nv"], preload=["numpy", "pandas"]
    )
    wanted = RunSpec(env=(("A", "1"),), binds=("/data",), preload=("pandas", "scipy"))
    order = container_order(ready, wanted, config)
    assert order.image == str(ready.image.path)
    assert order.image_digest == ready.image.manifest.image_digest
    assert (order.isolation, order.options) == ("task", ("--nv",))
    assert (order.env, order.binds) == ((("A", "1"),), ("/data",))
    assert order.preload == ("numpy", "pandas", "scipy")
    assert ContainerOrder.from_fields(json.loads(json.dumps(order.fields()))) == order


def test_bytecode_is_used_once_it_is_there(ready: Ready, tmp_path: Path) -> None:
    place = ready.image.path.with_name(BYTECODE)
    place.unlink(missing_ok=True)
    config = configured(tmp_path)
    assert container_order(ready, RunSpec(), config).bytecode is None
    place.touch()
    assert container_order(ready, RunSpec(), config).bytecode == str(place)
