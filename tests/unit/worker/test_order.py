import dataclasses
import json

import pytest

from globus_compute_apptainer.worker.order import ContainerOrder


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


def changed(order, **fields):
    return json.dumps({**json.loads(order.to_wire()), **fields})


def test_wire_form_is_text_that_holds_everything(full):
    assert full.run_key  # what was found out of an order is no part of it
    wire = full.to_wire()
    assert isinstance(wire, str)
    assert ContainerOrder.from_wire(wire) == full


@pytest.mark.parametrize("change", [{"format": 1}, {"format": 3}, {"format": None}])
def test_another_version_is_refused(order, change):
    with pytest.raises(ValueError, match="different versions"):
        ContainerOrder.from_wire(changed(order, **change))


def test_unknown_field_is_refused(order):
    with pytest.raises(ValueError, match=r"malformed.*surprise"):
        ContainerOrder.from_wire(changed(order, surprise=1))


def test_missing_field_is_refused(order):
    fields = json.loads(order.to_wire())
    del fields["image"]
    with pytest.raises(ValueError, match=r"malformed.*image"):
        ContainerOrder.from_wire(json.dumps(fields))


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
