"""What upstream's own engine tests ask of an engine, asked of ours.

Upstream's repository, ``compute_endpoint/tests``: ``unit/engine/test_base.py``,
``unit/engine/test_globuscompute.py``, ``unit/test_engines.py`` and
``integration/endpoint/executors``. ``docs/decisions/0003-upstream-window.md`` lists
each of those tests with the test of ours that covers it, here or in
``tests/integration/endpoint``.
"""

from __future__ import annotations

import uuid
from typing import Any
from unittest import mock

import pytest
from globus_compute_endpoint.engines import GCFuture
from globus_compute_endpoint.engines.base import _EXC_HISTORY_TMPL
from globus_compute_endpoint.engines.helper import execute_task
from globus_compute_sdk.serialize.concretes import SELECTABLE_STRATEGIES
from parsl.executors.high_throughput.interchange import ManagerLost
from parsl.providers import LocalProvider

from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.worker.terms import Terms

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
BOTH = pytest.mark.parametrize(
    "resources", [{}, {"container": SPEC}], ids=["host", "container"]
)


@pytest.fixture
def plain():
    engine = ApptainerEngine(address="127.0.0.1")
    yield engine
    engine.shutdown()


@BOTH
def test_tasks_are_forgotten_when_they_end(engine, resources) -> None:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", resources)
    future.result(30)
    assert future.executor_task_id == 1
    assert engine._task_id_map == {}


@BOTH
@pytest.mark.parametrize("retries", range(4))
def test_retries_are_honoured_and_their_history_told(
    engine, executor, unpack_result, resources, retries
) -> None:
    engine.max_retries_on_system_failure = retries
    executor.outcomes = [MemoryError() for _ in range(retries + 1)]
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", resources)
    result = unpack_result(future.result(30))
    assert len(executor.handed) == retries + 1
    assert result.data.count(_EXC_HISTORY_TMPL.split("\n")[0]) == retries + 1
    assert ("final attempt" in result.data) == bool(retries)
    assert result.error_details.code == "RemoteExecutionError"


@BOTH
@pytest.mark.parametrize("losses", range(4))
def test_a_task_succeeds_after_lost_managers(
    engine, executor, resources, losses
) -> None:
    engine.max_retries_on_system_failure = losses
    executor.outcomes = [ManagerLost(b"DEAD", "host") for _ in range(losses)]
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", resources)
    assert future.result(30) == b"the result"
    assert future.executor_task_id == losses + 1


def test_no_retries_unless_asked_for(plain) -> None:
    assert plain.max_retries_on_system_failure == 0


def told_by(executor) -> dict[str, Any]:
    """What the worker is told with the first task, by the stock path or by ours."""
    call = executor.handed[0][0]["task_executor"]
    if call["k"]:
        task_id, endpoint_id = call["a"]
        return {**call["k"], "task_id": str(task_id), "endpoint_id": str(endpoint_id)}
    return {**vars(Terms.from_wire(call["a"][1])), "task_id": call["a"][0]}


@BOTH
def test_the_task_is_told_who_and_where_it_is(engine, executor, resources) -> None:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", resources, result_serializers=["a.b"])
    future.result(30)
    told = told_by(executor)
    assert told["task_id"] == str(future.gc_task_id)
    assert told["endpoint_id"] == str(engine.endpoint_id)
    assert told["run_dir"] == engine.working_dir
    assert told["run_in_sandbox"] == engine.run_in_sandbox
    assert list(told["result_serializers"]) == ["a.b"]
    assert list(told["task_deserializers"]) == []
    assert "resource_spec" not in executor.handed[0][0]


@BOTH
def test_allowed_serializers_reach_the_worker(make_engine, executor, resources) -> None:
    engine = make_engine(allowed_serializers=SELECTABLE_STRATEGIES)
    assert engine.serde.allowed_deserializer_types == set(SELECTABLE_STRATEGIES)
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", resources)
    future.result(30)
    told = told_by(executor)["task_deserializers"]
    assert set(told) == {f"{c.__module__}.{c.__name__}" for c in SELECTABLE_STRATEGIES}


def test_the_stock_path_names_upstreams_own_function(engine, executor) -> None:
    future = GCFuture(uuid.uuid4())
    engine.submit(future, b"task", {})
    future.result(30)
    path = f"{execute_task.__module__}.{execute_task.__name__}"
    assert executor.handed[0][0]["task_executor"]["f"] == path


@BOTH
def test_a_bad_executor_fails_tasks_at_once(
    plain, unpack_result, make_engine, executor, resources
) -> None:
    engine = make_engine()
    submit_payload = type(executor).__mro__[1].submit_payload
    with mock.patch.object(type(executor), "submit_payload", submit_payload):
        executor.set_bad_state_and_fail_all(ZeroDivisionError("bad state"))
        assert isinstance(engine.executor_exception, ZeroDivisionError)
        futures = [GCFuture(uuid.uuid4()) for _ in range(5)]
        for future in futures:
            engine.submit(future, b"task", resources)
        for future in futures:
            result = unpack_result(future.result(30))
            assert "bad state" in result.data
            assert result.task_id == future.gc_task_id
            assert result.error_details.code == "RemoteExecutionError"


def test_a_fresh_executor_is_not_exceptional(plain) -> None:
    assert plain.executor_exception is None


def test_launch_commands_go_through_the_endpoints_own_program(plain) -> None:
    assert plain.executor.launch_cmd.startswith(
        "globus-compute-endpoint python-exec"
        " parsl.executors.high_throughput.process_worker_pool"
    )
    assert plain.executor.interchange_launch_cmd[:3] == [
        "globus-compute-endpoint",
        "python-exec",
        "parsl.executors.high_throughput.interchange",
    ]


def test_arguments_pass_through_to_the_executor_and_ours_does_not() -> None:
    kwargs = {"label": "Vroom", "address": "::1", "encrypted": False, "foo": "bar"}
    with mock.patch.object(ApptainerEngine, "_ExecutorClass") as executor_class:
        executor_class.__name__ = "Ex"
        executor_class.return_value = mock.Mock(launch_cmd="")
        engine = ApptainerEngine("a", 2, containers={"cache_dir": "/c"}, **kwargs)
        engine.shutdown()
    args, passed = executor_class.call_args
    assert args == ("a", 2)
    assert passed == {**kwargs, "label": "Vroom-Ex"}


@pytest.mark.parametrize("encrypted", [True, False])
def test_encryption_is_the_executors(encrypted: bool) -> None:
    engine = ApptainerEngine(address="127.0.0.1", encrypted=encrypted)
    assert engine.encrypted is engine.executor.encrypted is encrypted
    if encrypted:
        engine.assert_ha_compliant()
    else:
        with pytest.raises(ValueError, match="High-Assurance"):
            engine.assert_ha_compliant()
    engine.shutdown()


@pytest.mark.parametrize("option", [{"enable_mpi_mode": True}, {"mpi_launcher": "x"}])
def test_mpi_mode_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not supported"):
        ApptainerEngine(address="127.0.0.1", **option)


def test_the_executors_directories_are_set_at_the_start(tmp_path) -> None:
    executor = mock.Mock(
        status_polling_interval=5, launch_cmd="x", interchange_launch_cmd="x"
    )
    with mock.patch.object(ApptainerEngine, "_ExecutorClass", mock.Mock):
        engine = ApptainerEngine(executor=executor)
    assert engine.job_status_poller is None
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(tmp_path))
    assert engine.job_status_poller is not None
    engine.shutdown()
    assert executor.run_dir == str(tmp_path)
    assert executor.provider.script_dir == str(tmp_path / "submit_scripts")


@pytest.mark.parametrize("queue", ["queue", "partition"])
@pytest.mark.parametrize("account", ["account", "allocation", "project"])
def test_the_status_report_names_queue_and_account(queue: str, account: str) -> None:
    provider = LocalProvider()
    setattr(provider, queue, "debug")
    setattr(provider, account, "abc123")
    engine = ApptainerEngine(address="127.0.0.1", provider=provider)
    engine.endpoint_id = uuid.uuid4()
    engine.executor.connected_managers = mock.Mock(return_value=[])
    engine.executor.connected_managers_packages = mock.Mock(return_value={})
    report = engine.get_status_report()
    assert report.endpoint_id == engine.endpoint_id
    assert report.global_state["queue"] == "debug"
    assert report.global_state["account"] == "abc123"
    assert report.global_state["provider_type"] == "LocalProvider"
    engine.shutdown()


def test_the_wrong_kind_of_executor_is_refused() -> None:
    with pytest.raises(TypeError, match="HighThroughputExecutor"):
        ApptainerEngine(executor=object())
