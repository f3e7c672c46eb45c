"""Tasks that wait outlive the engine: one engine leaves them, another answers them.

An engine that is killed is played by one that loses its journal before it stops; a real
SIGKILL is in ``tests/integration/endpoint/test_restart.py``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.endpoint.result_store import ResultStore
from globus_compute_endpoint.engines import GCFuture

from globus_compute_apptainer.endpoint import journal, waiting
from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.worker.terms import Terms

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
LONG = 60


def submit(
    engine: ApptainerEngine, spec: object = SPEC, task_id: object = None, **rest: Any
) -> GCFuture:
    future = GCFuture(task_id or uuid.uuid4(), function_id=uuid.uuid4())
    engine.submit(future, b"task", {"container": spec, **rest}, ["a.b"])
    return future


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / journal.FOLDER


@pytest.fixture
def results(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    return lambda: dict(ResultStore(tmp_path))


@pytest.fixture
def killed(make_engine, builder) -> Callable[..., list[GCFuture]]:
    """Leave tasks behind, as an engine does that is killed while it builds."""

    def kill(*specs: object) -> list[GCFuture]:
        builder.gate.clear()
        engine = make_engine()
        futures = [submit(engine, spec, priority=1) for spec in specs or [SPEC]]
        end(engine)
        return futures

    return kill


def end(engine: ApptainerEngine) -> None:
    engine._waiting._journal = None
    engine.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def eventually(true: Callable[[], object]) -> None:
    import threading
    import time

    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_task_is_on_disk_while_it_waits(engine, builder, folder) -> None:
    builder.gate.clear()
    futures = [submit(engine) for _ in range(3)]
    assert names(folder) == sorted(f"{f.gc_task_id}.0" for f in futures)
    assert engine._waiting.unanswered() == 3
    builder.gate.set()
    assert [f.result(LONG) for f in futures] == [b"the result"] * 3
    eventually(lambda: names(folder) == [])
    assert engine._waiting.unanswered() == 0


def test_a_task_whose_image_is_there_never_is(engine, folder, builder) -> None:
    submit(engine).result(LONG)
    eventually(lambda: names(folder) == [])
    folder.rmdir()
    assert submit(engine).done()
    assert submit(engine, None).done()
    assert submit(engine, {"pip": 3}).done()
    assert not folder.exists()


def test_a_failed_build_leaves_nothing(engine, builder, folder) -> None:
    builder.error = BuildError("no such package", stage="pip")
    submit(engine).result(LONG)
    eventually(lambda: names(folder) == [])


def test_an_orderly_stop_leaves_nothing(engine, builder, folder) -> None:
    builder.gate.clear()
    future = submit(engine)
    engine.shutdown()
    assert future.done()
    assert names(folder) == []


def test_what_waited_is_run_by_the_next_engine(
    killed, make_engine, builder, executor, folder, results
) -> None:
    futures = killed(SPEC, {**SPEC, "pip": ["numpy"]}, SPEC)
    engine = make_engine()
    assert engine._waiting.unanswered() == 3
    assert names(folder) == sorted(f"{f.gc_task_id}.1" for f in futures)
    assert results() == {}
    builder.gate.set()
    eventually(lambda: len(results()) == 3)
    assert results() == {str(f.gc_task_id): b"the result" for f in futures}
    eventually(lambda: engine._waiting.unanswered() == 0)
    assert names(folder) == []
    (context, packed) = executor.handed[0]
    assert packed == b"task"
    assert context["resource_spec"] == {"priority": 1}
    told = Terms.from_wire(context["task_executor"]["a"][1])
    assert told.result_serializers == ("a.b",)


def test_it_is_run_at_once_if_the_image_is_there_now(
    killed, make_engine, builder, results, folder
) -> None:
    (future,) = killed()
    builder.gate.set()
    submit(make_engine(), SPEC).result(LONG)
    assert results() == {str(future.gc_task_id): b"the result"}
    eventually(lambda: names(folder) == [])


def test_a_build_that_fails_after_the_restart_answers_too(
    killed, make_engine, builder, results, unpack_result
) -> None:
    (future,) = killed()
    builder.error = BuildError("no", stage="pip", code="package-not-found")
    builder.gate.set()
    make_engine()
    eventually(results)
    result = unpack_result(results()[str(future.gc_task_id)])
    assert result.error_details.code == "package-not-found"


def test_a_policy_that_forbids_it_now_answers_it(
    killed, make_engine, results, unpack_result, folder
) -> None:
    (future,) = killed()
    make_engine({"policy": {"base_images": ["docker://debian:*"]}})
    result = unpack_result(results()[str(future.gc_task_id)])
    assert result.error_details.code == "policy-denied"
    assert names(folder) == []


def test_a_function_that_is_no_longer_permitted_is_not_run(
    killed, make_engine, results, unpack_result, folder, monkeypatch, executor
) -> None:
    asked: list[object] = []
    (future,) = killed()
    monkeypatch.setattr(
        "globus_compute_apptainer.endpoint.interchange.allows",
        lambda _interchange, function: asked.append(function),
    )
    make_engine()
    result = unpack_result(results()[str(future.gc_task_id)])
    assert result.error_details.code == "function-not-allowed"
    assert asked == [future.function_id]
    assert executor.handed == []
    assert names(folder) == []


def test_what_keeps_bringing_the_endpoint_down_is_given_up(
    killed, make_engine, results, unpack_result, folder
) -> None:
    (future,) = killed()
    for attempt in range(1, waiting.ATTEMPTS + 1):
        engine = make_engine()
        assert names(folder) == [f"{future.gc_task_id}.{attempt}"]
        assert engine._waiting.unanswered() == 1
        end(engine)
    make_engine()
    assert names(folder) == []
    result = unpack_result(results()[str(future.gc_task_id)])
    assert result.error_details.code == "endpoint-killed"
    assert f"{waiting.ATTEMPTS + 1} times" in result.data


def test_a_task_delivered_again_while_it_waits_joins_itself(
    engine, builder, executor, folder
) -> None:
    builder.gate.clear()
    first = submit(engine)
    again = submit(engine, task_id=first.gc_task_id)
    assert len(names(folder)) == 1
    builder.gate.set()
    assert again.result(LONG) == b"the result"
    assert not first.done()  # of a connection that is gone
    assert len(executor.handed) == 1


def test_a_resubmitted_task_delivered_again_is_answered_there(
    killed, make_engine, builder, executor, results
) -> None:
    (future,) = killed()
    engine = make_engine()
    again = submit(engine, task_id=future.gc_task_id)
    builder.gate.set()
    assert again.result(LONG) == b"the result"
    eventually(lambda: engine._waiting.unanswered() == 0)
    assert results() == {}
    assert len(executor.handed) == 1


def test_and_so_it_is_while_it_runs(
    killed, make_engine, builder, executor, results, monkeypatch
) -> None:
    from concurrent.futures import Future

    running: Future[bytes] = Future()
    running.parsl_executor_task_id = 1  # type: ignore[attr-defined]
    handed = []

    def submit_payload(context: object, _buffer: object) -> Future[bytes]:
        handed.append(context)
        return running

    (future,) = killed()
    monkeypatch.setattr(executor, "submit_payload", submit_payload)
    engine = make_engine()
    builder.gate.set()
    eventually(lambda: handed)
    again = submit(engine, task_id=future.gc_task_id)
    assert not again.done()
    running.set_result(b"late")
    assert again.result(LONG) == b"late"
    assert len(handed) == 1
    assert results() == {}
    assert engine._waiting.unanswered() == 0


def test_a_full_disk_stops_no_task(engine, builder, folder, caplog) -> None:
    builder.gate.clear()
    folder.write_text("in the way")
    future = submit(engine)
    assert not future.done()
    assert "cannot be written down" in caplog.text
    builder.gate.set()
    assert future.result(LONG) == b"the result"


def test_results_that_could_not_be_stored_are_stored_at_a_heartbeat(
    killed, make_engine, builder, results, tmp_path
) -> None:
    (future,) = killed()
    blocker = tmp_path / "unacked_results"
    blocker.write_text("in the way")
    engine = make_engine()
    builder.gate.set()
    eventually(lambda: engine._waiting._outbox.unwritten() == 1)
    assert engine._waiting.unanswered() == 1
    blocker.unlink()
    engine.get_status_report()
    assert results() == {str(future.gc_task_id): b"the result"}
    assert engine._waiting.unanswered() == 0


@pytest.mark.parametrize(
    ("wanted", "high_assurance", "kept"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"journal": "auto"}, True, False),
        ({"journal": "on"}, True, True),
        ({"journal": True}, True, True),
        ({"journal": "off"}, False, False),
        ({"journal": False}, False, False),
    ],
)
def test_whether_tasks_are_written_down(
    make_engine, monkeypatch, builder, folder, wanted, high_assurance, kept
) -> None:
    start = ApptainerEngine.start

    def as_the_endpoint_does(engine: ApptainerEngine, **kwargs: Any) -> None:
        if high_assurance:
            engine.assert_ha_compliant()
        start(engine, **kwargs)

    monkeypatch.setattr(ApptainerEngine, "start", as_the_endpoint_does)
    builder.gate.clear()
    engine = make_engine(wanted)
    future = submit(engine)
    assert bool(names(folder)) is kept
    builder.gate.set()
    assert future.result(LONG) == b"the result"


def test_records_hold_no_more_than_the_task(engine, builder, folder) -> None:
    builder.gate.clear()
    future = submit(engine)
    (name,) = names(folder)
    head = json.loads((folder / name).read_bytes().partition(b"\n")[0])
    assert set(head) == {
        "format", "sha256", "function_id", "resource_specification",
        "result_serializers",
    }  # fmt: skip
    assert head["function_id"] == str(future.function_id)
