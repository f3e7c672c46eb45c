"""What the engine does with tasks: where they go, and that none is lost."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.engines import GCFuture
from globus_compute_endpoint.engines.helper import execute_task

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.worker import runner

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
Unpack = Callable[[bytes], Any]


def path_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__name__}"


def submit(engine: ApptainerEngine, spec: object = SPEC, **rest: Any) -> GCFuture:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {"container": spec, **rest})
    return future


# -- tasks without a spec -------------------------------------------------------


def test_a_task_without_a_spec_takes_the_stock_path(engine, executor, builder) -> None:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {"priority": 3}, result_serializers=["x"])
    assert future.result(5) == b"the result"
    (context, payload) = executor.handed[0]
    assert payload == b"task"
    assert context["task_executor"]["f"] == path_of(execute_task)
    assert context["task_executor"]["k"]["result_serializers"] == ["x"]
    assert context["resource_spec"] == {"priority": 3}
    assert builder.builds == []


def test_a_null_container_is_no_container(engine, executor) -> None:
    assert submit(engine, None).result(5)
    assert executor.handed[0][0]["task_executor"]["f"] == path_of(execute_task)


def orders(executor) -> list[dict[str, Any]]:
    """What workers were told of containers, one for each task."""
    calls = [context["task_executor"] for context, _ in executor.handed]
    return [json.loads(call["a"][1])["order"] for call in calls]


# -- tasks with a spec ----------------------------------------------------------


def test_a_task_with_a_spec_is_handed_to_our_runner(engine, executor) -> None:
    future = submit(engine, {**SPEC, "env": {"A": "1"}, "gpu": "nvidia"}, priority=1)
    assert future.result(30) == b"the result"
    context, payload = executor.handed[0]
    call = context["task_executor"]
    assert payload == b"task"
    assert call["f"] == path_of(runner.run)
    assert call["a"][0] == str(future.gc_task_id)
    assert context["resource_spec"] == {"priority": 1}
    order = json.loads(call["a"][1])["order"]
    assert Path(order["image"]).is_file()
    assert order["cache"] == "built"
    assert order["gpu"] == "nvidia"


def test_what_is_handed_over_survives_pickling_by_value(engine, executor) -> None:
    """Workers may run another version: nothing of ours but the path of the runner."""
    submit(engine).result(30)
    told = executor.handed[0][0]["task_executor"]
    assert [type(argument) for argument in told["a"]] == [str, str]
    assert not told["k"]


def test_a_cached_image_is_handed_over_in_the_calling_thread(engine, executor) -> None:
    submit(engine).result(30)
    future = submit(engine)
    assert future.done()
    assert orders(executor)[1]["cache"] == "hit"


def test_many_tasks_with_one_new_spec_cost_one_build(engine, executor, builder) -> None:
    builder.gate.clear()
    futures = [submit(engine) for _ in range(50)]
    assert not any(f.done() for f in futures)
    builder.gate.set()
    assert {f.result(30) for f in futures} == {b"the result"}
    assert len(builder.builds) == 1
    outcomes = [order["cache"] for order in orders(executor)]
    assert outcomes.count("built") == 1
    assert outcomes.count("shared") == 49


def test_submit_does_not_wait_for_the_build(engine, builder) -> None:
    builder.gate.clear()
    future = submit(engine)  # would hang here, with the gate closed
    assert not future.done()
    assert engine.get_status_report().global_state["containers"]["waiting_tasks"] == 1


def test_the_same_image_with_other_run_options_is_built_once(engine, builder) -> None:
    for extra in ({}, {"env": {"A": "1"}}, {"gpu": "nvidia"}, {"name": "x"}):
        submit(engine, {**SPEC, **extra}).result(30)
    assert len(builder.builds) == 1


def test_images_by_the_admins_name(make_engine, executor, unpack_result) -> None:
    engine = make_engine({"images": {"ml": {**SPEC, "post": ["true"]}}})
    assert submit(engine, "ml").result(30) == b"the result"
    error = unpack_result(submit(engine, "mll").result(30))
    assert error.error_details.code == "image-unknown"
    assert "'ml'" in error.data


def test_a_default_container_serves_tasks_that_attach_none(
    make_engine, executor
) -> None:
    engine = make_engine({"images": {"ml": SPEC}, "default_container": "ml"})
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {})
    future.result(30)
    assert executor.handed[0][0]["task_executor"]["f"] == path_of(runner.run)


def test_policy_binds_a_default_spec_since_a_client_may_have_sent_it(
    make_engine, unpack_result
) -> None:
    engine = make_engine({"default_container": {**SPEC, "post": ["id"]}})
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {})
    assert unpack_result(future.result(5)).error_details.code == "policy-denied"


# -- errors ---------------------------------------------------------------------

CIRCULAR: dict[str, Any] = {}
CIRCULAR["pip"] = CIRCULAR
BAD_SPECS = [
    pytest.param({"bse_image": "x"}, "spec-invalid", id="unknown field"),
    pytest.param({"pip": 3}, "spec-invalid", id="wrong type"),
    pytest.param({}, "spec-empty", id="empty"),
    pytest.param({"pip": ["x" * 1_000_000]}, "spec-too-large", id="1 MB"),
    pytest.param({"pip": [b"x"]}, "spec-invalid", id="bytes"),
    pytest.param({"env": {"A": {1, 2}}}, "spec-invalid", id="a set"),
    pytest.param({"env": {"A": float("nan")}}, "spec-invalid", id="NaN"),
    pytest.param(CIRCULAR, "spec-invalid", id="circular"),
    pytest.param(17, "spec-invalid", id="a number"),
    pytest.param({**SPEC, "post": ["id"]}, "policy-denied", id="policy"),
    pytest.param({"preload": ["x y"]}, "spec-invalid", id="no module"),
    pytest.param({"action": "lst"}, "spec-invalid", id="control"),
    pytest.param("sha256:" + "0" * 64, "digest-unknown", id="digest"),
    pytest.param("nope", "image-unknown", id="unknown name"),
    pytest.param("\ud800x", "image-unknown", id="half a surrogate pair"),
    pytest.param("sha256:\ud800", "digest-unknown", id="half a pair in a digest"),
    pytest.param({"pip": ["\ud800"]}, "spec-invalid", id="half a pair in a field"),
    pytest.param({"\ud800": 1}, "spec-invalid", id="half a pair as a field"),
]


@pytest.mark.parametrize(("spec", "code"), BAD_SPECS)
def test_a_bad_spec_ends_the_task_at_once_with_a_typed_error(
    engine, executor, unpack_result, spec, code
) -> None:
    future = submit(engine, spec)
    result = unpack_result(future.result(0))
    assert result.task_id == future.gc_task_id
    assert result.error_details.code == code
    assert f"[{code}]" in result.data
    assert executor.handed == []
    assert submit(engine).result(30) == b"the result"  # the engine is well


def test_a_bad_key_beside_the_spec_fails_as_on_the_stock_engine_before_any_build(
    engine, builder, unpack_result
) -> None:
    result = unpack_result(submit(engine, SPEC, num_nodes=2).result(5))
    assert "InvalidResourceSpecification" in result.data
    assert builder.builds == []


def test_a_failed_build_ends_every_waiting_task(engine, builder, unpack_result) -> None:
    builder.gate.clear()
    builder.error = BuildError(
        "no such package", stage="pip", tail=("x",), code="package-not-found"
    )
    futures = [submit(engine) for _ in range(5)]
    builder.gate.set()
    for future in futures:
        result = unpack_result(future.result(30))
        assert result.task_id == future.gc_task_id
        assert result.error_details.code == "package-not-found"
        assert "stage: pip" in result.data
    builder.error = None
    again = unpack_result(submit(engine).result(30))
    assert again.error_details.code == "package-not-found"
    assert "this failure is remembered from" in again.data
    assert submit(engine, {**SPEC, "pip": ["other"]}).result(30) == b"the result"


def test_an_unforeseen_fault_ends_the_task_too(engine, builder, unpack_result) -> None:
    builder.error = ZeroDivisionError("surprise")
    result = unpack_result(submit(engine).result(30))
    assert result.error_details.code == "internal-error"
    assert "surprise" in result.data


def test_a_fault_while_handing_over_ends_the_task(
    engine, monkeypatch, unpack_result
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("in the order")

    monkeypatch.setattr(
        "globus_compute_apptainer.endpoint.recent.container_order", broken
    )
    result = unpack_result(submit(engine).result(30))
    assert result.error_details.code == "internal-error"


def test_an_unusable_cache_is_a_typed_error_and_not_a_failed_start(
    executor, tmp_path, unpack_result
) -> None:
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    engine = ApptainerEngine(
        executor=executor,
        strategy="none",
        containers={"cache_dir": str(blocker / "cache")},
    )
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(tmp_path))
    try:
        result = unpack_result(submit(engine).result(30))
        assert result.error_details.code == "cache-unusable"
    finally:
        engine.shutdown()


def test_a_missing_apptainer_is_a_typed_error_and_not_a_failed_start(
    executor, tmp_path, unpack_result
) -> None:
    engine = ApptainerEngine(
        executor=executor,
        strategy="none",
        containers={"cache_dir": str(tmp_path / "c"), "apptainer": "/no/apptainer"},
    )
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(tmp_path))
    try:
        result = unpack_result(submit(engine).result(30))
        assert result.error_details.code == "apptainer-missing"
    finally:
        engine.shutdown()


# -- start and stop -------------------------------------------------------------


def test_submitting_before_the_start_raises_as_on_the_stock_engine() -> None:
    engine = ApptainerEngine(address="127.0.0.1")
    for resource_specification in ({}, {"container": SPEC}):
        with pytest.raises(RuntimeError, match="Engine not started"):
            engine.submit(GCFuture(uuid.uuid4()), b"task", resource_specification)
    engine.shutdown()


def test_making_an_engine_opens_and_starts_nothing() -> None:
    """It is made before the endpoint daemonises."""
    ApptainerEngine(address="127.0.0.1").shutdown()  # imports done
    fds, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    engine = ApptainerEngine(address="127.0.0.1", containers={"cache_dir": "/no/where"})
    assert set(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads
    assert not Path("/no/where").exists()
    engine.shutdown()


def test_shutting_down_ends_waiting_tasks_in_an_error(
    engine, builder, unpack_result
) -> None:
    builder.gate.clear()
    futures = [submit(engine) for _ in range(3)]
    futures.append(submit(engine, {**SPEC, "pip": ["numpy"]}))
    assert builder.begun.wait(10)
    engine.shutdown()
    for future in futures:
        code = unpack_result(future.result(5)).error_details.code
        assert code in {"endpoint-stopped", "build-cancelled"}
    after = submit(engine, {**SPEC, "pip": ["scipy"]})
    assert unpack_result(after.result(5)).error_details.code == "endpoint-stopped"
    engine.shutdown()


def test_the_status_report_gains_counts_and_keeps_the_rest(engine) -> None:
    state = engine.get_status_report().global_state
    assert state["engine_type"] == "ApptainerEngine"
    assert state["containers"] == {
        "queued": 0, "building": 0, "waiting_tasks": 0, "built": 0, "failed": 0,
    }  # fmt: skip


def test_the_engine_represents_itself() -> None:
    engine = ApptainerEngine(address="127.0.0.1", containers={"cache_dir": "/c"})
    assert "containers={'cache_dir': '/c'}" in repr(engine)
    engine.shutdown()


def test_versions_outside_the_window_are_said_in_one_line_at_the_start(
    make_engine, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(upstream, "outside_window", lambda: "parsl 1 is outside")
    make_engine()
    lines = [record.getMessage() for record in caplog.records]
    assert "parsl 1 is outside" in lines


def test_records_go_where_the_endpoint_writes_its_own(make_engine, monkeypatch) -> None:
    theirs = logging.getLogger("globus_compute_endpoint")
    ours = logging.getLogger("globus_compute_apptainer")
    handler = logging.handlers.BufferingHandler(1000)
    monkeypatch.setattr(theirs, "handlers", [handler])
    monkeypatch.setattr(theirs, "level", logging.INFO)
    monkeypatch.setattr(ours, "handlers", [])
    before = ours.level
    try:
        engine = make_engine()
        submit(engine).result(30)
        logging.getLogger("globus_compute_apptainer.images").info("told")
        assert "told" in [record.getMessage() for record in handler.buffer]
    finally:
        ours.setLevel(before)


# -- one hand-over at a time ----------------------------------------------------


def test_hand_overs_from_many_threads_do_not_overlap(engine, executor) -> None:
    submit(engine).result(30)
    start = threading.Barrier(12)

    def flood(spec: object) -> None:
        start.wait()
        for _ in range(100):
            submit(engine, spec)

    specs = [SPEC, None] * 6
    threads = [threading.Thread(target=flood, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not executor.overlapped
    assert len(executor.handed) == 1201
