import dataclasses
import json

import pytest

from globus_compute_apptainer.worker.terms import Terms


@pytest.fixture
def full(order):
    container = dataclasses.replace(
        order,
        gpu="nvidia",
        binds=("/scratch", "/data:/data:ro"),
        env=(("A", "1"), ("B", "x,y\n")),
        options=("--no-home",),
        warm_per_worker=5,
        start_timeout=7.5,
        apptainer="/opt/apptainer",
    )
    return Terms(
        container,
        run_dir="/somewhere",
        endpoint_id="11111111-2222-3333-4444-555555555555",
        result_size_limit=1000,
        run_in_sandbox=True,
        task_deserializers=("a.B", "c.D"),
        result_serializers=("e.F",),
    )


def changed(terms, **fields):
    return json.dumps({**json.loads(terms.to_wire()), **fields})


def test_wire_form_is_text_that_holds_everything(full):
    assert full.order.run_key  # what was found out of an order is no part of it
    wire = full.to_wire()
    assert isinstance(wire, str)
    assert Terms.from_wire(wire) == full


def test_what_is_not_said_is_as_on_the_stock_engine(order):
    terms = Terms(order, run_dir="/somewhere")
    assert Terms.from_wire(terms.to_wire()) == terms
    assert terms.result_size_limit == 10 * 1024 * 1024


@pytest.mark.parametrize("change", [{"format": 4}, {"format": 6}, {"format": None}])
def test_another_version_is_refused(full, change):
    with pytest.raises(ValueError, match="different versions"):
        Terms.from_wire(changed(full, **change))


def test_unknown_field_is_refused(full):
    with pytest.raises(ValueError, match=r"malformed.*surprise"):
        Terms.from_wire(changed(full, surprise=1))
    order = {**full.order.fields(), "surprise": 1}
    with pytest.raises(ValueError, match=r"malformed.*surprise"):
        Terms.from_wire(changed(full, order=order))


@pytest.mark.parametrize("name", ["order", "run_dir", "task_deserializers"])
def test_missing_field_is_refused(full, name):
    fields = json.loads(full.to_wire())
    del fields[name]
    with pytest.raises(ValueError, match=f"malformed.*{name}"):
        Terms.from_wire(json.dumps(fields))
    del fields["format"]
    with pytest.raises(ValueError, match="different versions"):
        Terms.from_wire(json.dumps(fields))


def test_missing_field_of_the_container_is_refused(full):
    order = full.order.fields()
    del order["image"]
    with pytest.raises(ValueError, match=r"malformed.*image"):
        Terms.from_wire(changed(full, order=order))
