"""The verb ``try`` and the messages of its engine, with an engine of paper."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import (
    Result,
    ResultErrorDetails,
)
from globus_compute_sdk.serialize import ComputeSerializer

from globus_compute_apptainer.cli import main, try_
from globus_compute_apptainer.endpoint import local
from globus_compute_apptainer.endpoint.local import LocalEngine, Outcome
from globus_compute_apptainer.errors import HostError

SERIALIZER = ComputeSerializer()


def add(x: int, y: int = 1) -> int:
    return x + y


class PaperEngine:
    """Runs the task here and now, or answers what it is told to."""

    def __init__(self, answer: dict[str, Any] | None = None) -> None:
        self.answer = answer
        self.seen: list[object] = []

    def submit(self, future: Any, packed: bytes, resources: object) -> None:
        self.seen.append(resources)
        task = messagepack.unpack(packed)
        assert task.task_id == future.gc_task_id
        function, args, kwargs = SERIALIZER.unpack_and_deserialize(task.task_buffer)
        answer = self.answer or {
            "data": SERIALIZER.serialize(function(*args, **kwargs))
        }
        future.set_result(messagepack.pack(Result(task_id=task.task_id, **answer)))


def engine(answer: dict[str, Any] | None = None) -> tuple[LocalEngine, PaperEngine]:
    paper = PaperEngine(answer)
    return LocalEngine(paper, clock=iter([10.0, 12.5]).__next__), paper


def test_a_task_goes_and_its_result_comes() -> None:
    local, paper = engine()
    assert local.run(add, [1], {"pip": []}) == Outcome(2, seconds=2.5)
    assert paper.seen == [{"container": {"pip": []}}]


def test_what_the_result_says_of_the_container_is_kept() -> None:
    details = {"container": {"cache": "hit"}, "os": "x"}
    local, _ = engine({"data": SERIALIZER.serialize(3), "details": details})
    outcome = local.run(add, [1], {})
    assert (outcome.value, outcome.container) == (3, {"cache": "hit"})


def test_an_error_result_is_an_error() -> None:
    problem = ResultErrorDetails(code="build-failed", user_message="no")
    local, _ = engine({"data": "no [build-failed]", "error_details": problem})
    outcome = local.run(add, [1], {})
    assert (outcome.code, outcome.error) == ("build-failed", "no [build-failed]")
    assert outcome.value is None


def test_a_result_that_cannot_be_read_here() -> None:
    gone = "00\n" + "gAWVHQAAAAAAAACMDG5vdF9pbXBvcnRlZJSMBVRoaW5nlJOULg==\n"
    local, _ = engine({"data": gone})
    outcome = local.run(add, [1], {})
    assert outcome.code == "result-unreadable"
    assert "return plain data" in outcome.error


def test_a_message_that_is_no_result() -> None:
    local, _ = engine()
    task = messagepack.message_types.Task(task_id=uuid.uuid4(), task_buffer="")
    with pytest.raises(TypeError, match="not Task"):
        local._outcome(messagepack.pack(task), 0.0)


def test_the_programs_of_this_environment_come_first(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(local.sys, "executable", "/venv/bin/python")
    with local._own_programs_first():
        assert local.os.environ["PATH"] == "/venv/bin:/usr/bin"
    assert local.os.environ["PATH"] == "/usr/bin"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    file = tmp_path / "work.py"
    file.write_text("def add(x, y=1):\n    return x + y\n")
    started: list[object] = []

    def call(outcome: Outcome, *arguments: str) -> tuple[int, str, str]:
        @contextlib.contextmanager
        def fake_engine(containers: object, sink: object) -> Iterator[Any]:
            started.append(containers)
            yield SimpleNamespace(run=lambda *_: outcome)

        monkeypatch.setattr(try_, "local_engine", fake_engine)
        monkeypatch.setattr(try_, "Apptainer", SimpleNamespace(find=lambda _: None))
        spec, *options = arguments or ('{"pip": ["a"]}',)
        command = ["--", "python", f"{file}:add", "1"]
        cache = ["--cache-dir", str(tmp_path)]
        status = main.main(["try", *cache, *options, spec, *command])
        return status, *capsys.readouterr()

    call.started = started  # type: ignore[attr-defined]
    return call


def test_a_value_is_printed(call) -> None:
    done = Outcome({"a": 1}, container={"cache": "hit"}, seconds=1.0)
    assert call(done) == (0, "{'a': 1}\n", "image: hit; 1.0 s in all\n")
    assert call(Outcome("text\nmore"))[:2] == (0, "text\nmore\n")


def test_an_error_is_printed_as_one(call) -> None:
    failed = Outcome(error="Traceback …\nKeyError: 'x'\n", code="RemoteExecutionError")
    status, out, err = call(failed)
    assert (status, out) == (1, "")
    assert "KeyError: 'x'" in err


@pytest.mark.parametrize(
    ("value", "shown"), [([1], [1]), ({1, 2}, "{1, 2}"), (None, None)]
)
def test_json_has_the_value_or_what_it_looks_like(call, value, shown) -> None:
    _, out, _ = call(Outcome(value, seconds=0.12345), '{"pip": ["a"]}', "--json")
    report = json.loads(out)
    assert report == {"container": {}, "seconds": 0.123, "result": shown}


def test_json_has_the_error(call) -> None:
    failed = Outcome(error="no", code="RemoteExecutionError")
    status, out, _ = call(failed, '{"pip": ["a"]}', "--json")
    assert status == 1
    assert json.loads(out)["error"] == {"code": "RemoteExecutionError", "message": "no"}


def test_a_bad_spec_starts_no_engine(call) -> None:
    assert call(Outcome(), '{"pipp": []}')[0] == 2
    assert call.started == []


def test_without_apptainer_no_engine_starts(call, monkeypatch, tmp_path) -> None:
    def find(_: object) -> None:
        raise HostError("Apptainer is not installed here")

    call(Outcome())
    monkeypatch.setattr(try_, "Apptainer", SimpleNamespace(find=find))
    file = tmp_path / "work.py"
    assert main.main(["try", '{"pip": ["a"]}', "--", "python", f"{file}:add", "1"]) == 3
    assert len(call.started) == 1
