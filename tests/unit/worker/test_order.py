import dataclasses

import pytest


@pytest.fixture
def full(order):
    return dataclasses.replace(
        order,
        gpu="nvidia",
        binds=("/scratch", "/data:/data:ro"),
        env=(("A", "1"), ("B", "x,y\n")),
        options=("--no-home",),
        warm_per_worker=5,
        start_timeout=7.5,
        apptainer="/opt/apptainer",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"image": "/other.sif"},
        {"gpu": "rocm"},
        {"binds": ("/scratch",)},
        {"env": (("A", "2"),)},
        {"options": ()},
        {"preload": ("json",)},
        {"bytecode": "/b"},
        {"python": "/other/python"},
    ],
)
def test_run_key_tells_runs_apart(full, change):
    other = dataclasses.replace(full, **change)
    assert other.run_key != full.run_key


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "hit"},
        {"build_seconds": 0.0},
        {"warm_per_worker": 1},
        {"idle_timeout": 1.0},
        {"isolation": "task"},
    ],
)
def test_run_key_ignores_what_does_not_run(full, change):
    assert dataclasses.replace(full, **change).run_key == full.run_key


def test_summary_is_what_results_tell(order):
    assert order.summary() == {
        "spec_digest": "sha256:" + "1" * 64,
        "image": "sha256:" + "2" * 64,
        "base": "docker://python:3.11-slim",
        "cache": "built",
        "build_seconds": 2.5,
        "apptainer_version": "1.4.5",
    }
