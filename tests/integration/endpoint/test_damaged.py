"""Images that are damaged or gone when a worker wants them: made again, for real."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.endpoint.engine import ApptainerEngine

pytestmark = pytest.mark.apptainer


@pytest.fixture(scope="module")
def engine(
    make_engine: Callable[..., ApptainerEngine],
    registry: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> ApptainerEngine:
    return make_engine(
        {
            "cache_dir": str(tmp_path_factory.mktemp("own")),
            "build": {"http_registries": [registry], "timeout": "10m"},
            "run": {"start_timeout": "60s"},
        }
    )


def image_of(engine: ApptainerEngine, spec: dict[str, Any]) -> Path:
    """The file of a spec's image, built if it has to be."""
    wanted = engine._requests.wanted(spec)
    assert wanted is not None
    assert engine._images is not None
    ready = engine._images.request(wanted.image, policy=wanted.policy).result(300)
    engine._images.settle()
    return ready.image.path


def spoil(path: Path) -> None:
    """Size and beginning stay what they were."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 20)
        file.write(os.urandom(size - size // 10))


def humanized() -> str:
    import humanize

    return str(humanize.intcomma(1234567))


def wait_for(path: str) -> str:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.05)
    return "done"


def test_a_damaged_image_is_noticed_at_the_start_and_made_again(
    engine, submit, value, spec
) -> None:
    image = image_of(engine, spec)
    spoil(image)
    assert value(submit(engine, spec, humanized)) == "1,234,567"
    quarantine = Path(engine._config.cache_dir, "v2/quarantine")
    assert [path.name[:64] for path in quarantine.iterdir()] == [image.parent.name]


def test_an_image_that_went_while_its_task_waited_is_made_again(
    engine, submit, value, spec, tmp_path
) -> None:
    other = {**spec, "pip": ["humanize", "tqdm"]}
    image = image_of(engine, other)
    gate = tmp_path / "gate"
    busy = [submit(engine, None, wait_for, str(gate)) for _ in range(2)]  # all workers
    waiting = submit(engine, other, humanized)
    image.unlink()
    gate.touch()
    assert value(waiting) == "1,234,567"
    assert [value(future) for future in busy] == ["done", "done"]
