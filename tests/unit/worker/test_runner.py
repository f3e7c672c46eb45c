"""The runner with an agent that runs on the host instead of in a container."""

import json
import uuid

import pytest

from globus_compute_apptainer.errors import HostError, TaskError
from globus_compute_apptainer.worker import runner
from globus_compute_apptainer.worker.inside import frames
from globus_compute_apptainer.worker.terms import Terms
from globus_compute_apptainer.worker.warm import WarmPool


@pytest.fixture
def warm(monkeypatch, node):
    pool = WarmPool()
    monkeypatch.setattr(runner, "_pool", pool)
    monkeypatch.setattr(runner, "_node", node)
    yield pool
    pool.close()


@pytest.fixture
def run(warm, monkeypatch, agent_launch, order, pack_task, unpack_result, tmp_path):
    monkeypatch.setattr(runner, "launch", lambda order, run_dir: agent_launch())

    def run(function, *args, **options):
        task_id, packed = pack_task(function, *args)
        terms = Terms(order, run_dir=str(tmp_path), **options)
        answer = runner.run(packed, str(task_id), terms.to_wire())
        result = unpack_result(answer)
        assert result.task_id == task_id
        return result

    return run


def add(a, b=1):
    return a + b


def crash():
    import os

    os.kill(os.getpid(), 11)


def pid():
    import os

    return os.getpid()


def value(result):
    from globus_compute_sdk.serialize import ComputeSerializer

    assert not result.is_error, result.data
    return ComputeSerializer().deserialize(result.data)


def test_result(run, order):
    result = run(add, 1)
    assert value(result) == 2
    assert result.details["container"] == order.summary()


def test_crash_is_an_error_result(run):
    result = run(crash)
    assert result.error_details.code == "container-crashed"
    assert "signal SIGSEGV" in result.data
    assert value(run(add, 1)) == 2


def test_task_that_was_not_sent_goes_to_a_fresh_container(run, monkeypatch):
    first = value(run(pid))
    write_frame = frames.write_frame

    def broken_once(*args):
        monkeypatch.setattr(frames, "write_frame", write_frame)
        raise BrokenPipeError

    monkeypatch.setattr(frames, "write_frame", broken_once)
    assert value(run(pid)) != first


def test_task_that_was_not_sent_twice_is_an_error_result(run, monkeypatch):
    def broken(*args):
        raise BrokenPipeError

    monkeypatch.setattr(frames, "write_frame", broken)
    result = run(pid)
    assert result.error_details.code == "container-crashed"
    assert "before it had the task" in result.data


def test_interrupted_task_does_not_answer_for_the_next(run, monkeypatch):
    frame = frames.Reader.frame

    def interrupted_once(reader):
        monkeypatch.setattr(frames.Reader, "frame", frame)
        raise KeyboardInterrupt

    assert value(run(add, 1)) == 2
    monkeypatch.setattr(frames.Reader, "frame", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        run(add, 2)
    assert value(run(add, 3)) == 4


@pytest.mark.parametrize(
    "error",
    [
        HostError("no Apptainer", code="apptainer-missing", hint="install it"),
        TaskError("no image", code="image-missing"),
    ],
)
def test_errors_of_starting_are_results(run, monkeypatch, error, order):
    def refuse(order, run_dir):
        raise error

    monkeypatch.setattr(runner, "launch", refuse)
    result = run(add, 1)
    assert result.error_details.code == error.code
    assert result.error_details.user_message == error.message
    assert result.data == str(error)
    assert result.details["python_version"] == order.python_version
    assert result.details["container"] == order.summary()


@pytest.mark.parametrize(
    ("ended", "version", "expected"),
    [
        ("signal SIGSEGV", "3.8.1", True),
        ("signal SIGSEGV", None, False),
        ("exit code 3", "3.8.1", False),
    ],
)
def test_hint_on_python_versions(order, ended, version, expected):
    import dataclasses

    order = dataclasses.replace(order, python_version=version)
    error = runner._with_hint(TaskError("x", ended=ended), order)
    assert ("bytecode" in error.hint) == expected
    assert error.ended == ended


def test_malformed_terms_are_raised(warm):
    with pytest.raises(ValueError, match="different versions"):
        runner.run(b"", str(uuid.uuid4()), json.dumps({}))
