"""A task is run again where its image was at fault, once, and never otherwise."""

from __future__ import annotations

import json
import os
import threading
import uuid
from typing import Any

import pytest
from globus_compute_common import messagepack
from globus_compute_endpoint.engines import GCFuture

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.errors import TaskError

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
MISSING = TaskError("no image", code="image-missing")
NOT_STARTED = TaskError("did not start", code="container-start-failed")
CRASHED = TaskError("crashed", code="container-crashed")


def submit(engine, spec: object = SPEC) -> GCFuture:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {"container": spec})
    return future


def packed(error: TaskError) -> bytes:
    return upstream.error_result(uuid.uuid4(), error)


def orders(executor) -> list[dict[str, Any]]:
    calls = [context["task_executor"] for context, _ in executor.handed]
    return [json.loads(call["a"][1])["order"] for call in calls]


def code(result: bytes) -> str:
    return str(messagepack.unpack(result).error_details.code)


def test_an_image_that_a_worker_finds_gone_is_made_again(engine, executor, builder):
    submit(engine).result(30)
    order = orders(executor)[0]
    executor.outcomes = [packed(MISSING)]
    os.unlink(order["image"])
    future = submit(engine)
    assert future.result(30) == b"the result"
    assert len(builder.builds) == 2
    assert os.path.exists(orders(executor)[-1]["image"])
    assert future.executor_task_id == len(executor.handed)


def test_an_image_that_only_the_worker_did_not_see_is_tried_once_more(
    engine, executor, builder
):
    submit(engine).result(30)
    executor.outcomes = [packed(MISSING), packed(MISSING)]
    assert code(submit(engine).result(30)) == "image-missing"
    assert len(executor.handed) == 3
    assert len(builder.builds) == 1


def test_a_damaged_image_is_replaced_and_the_task_run_again(engine, executor, builder):
    submit(engine).result(30)
    image = orders(executor)[0]["image"]
    flip(image)
    executor.outcomes = [packed(NOT_STARTED)]
    assert submit(engine).result(30) == b"the result"
    assert len(builder.builds) == 2
    assert not os.path.exists(image), "it is in quarantine"


def test_an_image_that_is_well_is_not_to_blame(engine, executor, builder) -> None:
    submit(engine).result(30)
    executor.outcomes = [packed(NOT_STARTED)]
    assert code(submit(engine).result(30)) == "container-start-failed"
    assert (len(executor.handed), len(builder.builds)) == (2, 1)


def test_a_task_is_run_again_once_only(engine, executor, builder) -> None:
    submit(engine).result(30)
    flip(orders(executor)[0]["image"])
    executor.outcomes = [packed(NOT_STARTED), packed(NOT_STARTED)]
    assert code(submit(engine).result(30)) == "container-start-failed"
    assert len(builder.builds) == 2


def test_many_complaints_of_one_damaged_image_cost_one_build(
    engine, executor, builder
) -> None:
    """The late ones come when the new image is there already, and do it no harm."""
    submit(engine).result(30)
    damaged = orders(executor)[0]["image"]
    flip(damaged)
    begin = executor.submit_payload

    def submit_payload(context: dict[str, Any], buffer: bytes) -> Any:
        image = json.loads(context["task_executor"]["a"][1])["order"]["image"]
        executor.outcomes = [packed(NOT_STARTED)] if image == damaged else []
        return begin(context, buffer)

    executor.submit_payload = submit_payload
    builder.gate.clear()
    futures = [submit(engine) for _ in range(20)]
    builder.gate.set()
    assert {future.result(30) for future in futures} == {b"the result"}
    assert len(builder.builds) == 2


def test_other_failures_are_the_tasks_own(engine, executor, builder) -> None:
    executor.outcomes = [packed(CRASHED)]
    assert code(submit(engine).result(30)) == "container-crashed"
    executor.outcomes = [b"image-missing is what the function returned"]
    assert submit(engine).result(30).startswith(b"image-missing")
    executor.outcomes = [ZeroDivisionError("in Parsl")]
    assert "in Parsl" in messagepack.unpack(submit(engine).result(30)).data
    assert (len(executor.handed), len(builder.builds)) == (3, 1)


def test_a_build_that_fails_then_ends_the_task(engine, executor, builder) -> None:
    submit(engine).result(30)
    os.unlink(orders(executor)[0]["image"])
    executor.outcomes = [packed(MISSING)]
    builder.error = ZeroDivisionError("no luck")
    assert code(submit(engine).result(30)) == "internal-error"


def test_the_image_is_in_use_until_the_task_has_ended(engine, executor) -> None:
    store = engine._images._store
    seen: list[set[str]] = []
    begin = executor.submit_payload

    def submit_payload(*args: Any) -> Any:
        seen.append(store.leases.in_use())
        return begin(*args)

    executor.submit_payload = submit_payload
    submit(engine).result(30)
    assert any(name.startswith("images-") for name in seen[0])
    nap = threading.Event()
    for _ in range(6000):  # the build's own lease ends after its answer
        if store.leases._counts == {}:
            return
        nap.wait(0.01)
    raise AssertionError("a lease is still held")


def test_an_image_that_is_gone_at_the_hand_over_is_made_again(
    engine, executor, builder, monkeypatch
) -> None:
    """Removed between the look-up and the lease."""
    images = engine._images
    submit(engine).result(30)
    use, refused = images.use, []

    def once_gone(ready: Any) -> Any:
        if not refused:
            refused.append(ready)
            os.unlink(ready.image.path)
        return use(ready)

    monkeypatch.setattr(images, "use", once_gone)
    assert submit(engine).result(30) == b"the result"
    assert len(builder.builds) == 2


def test_cancelling_the_last_waiting_task_stops_the_build(engine, builder) -> None:
    builder.gate.clear()
    one, two = submit(engine), submit(engine)
    assert builder.begun.wait(30)
    cancel = builder.cancel
    one.cancel()
    assert not cancel.is_set()
    two.cancel()
    assert cancel.is_set()
    builder.gate.set()


@pytest.mark.parametrize("result", [b"", b"image-missing", b"\x01image-missing"])
def test_what_is_no_result_is_passed_on_as_it_is(engine, executor, result) -> None:
    executor.outcomes = [result]
    assert submit(engine).result(30) == result


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
