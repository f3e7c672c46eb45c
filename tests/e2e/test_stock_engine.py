"""The test bed itself: behind the stand-in, the stock engine does as it always does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from globus_compute_sdk import ShellFunction
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import DillCode

from loopback.testbed import testbed as make_bed

if TYPE_CHECKING:
    from pathlib import Path

    from loopback.testbed import Bed
    from provision.services import RabbitMQ

COLD = 120
WARM = 30


def whereabouts(number):
    import os
    import sys

    return {"prefix": sys.prefix, "pid": os.getpid(), "number": number}


def stumble():
    raise KeyError("lost in the woods")


def sleep_long(path):
    import pathlib
    import time

    pathlib.Path(path).write_text("started")
    time.sleep(600)


def test_task_runs_on_worker_of_chosen_environment(stock_bed: Bed, venv_bin: Path):
    with stock_bed.executor() as executor:
        result = executor.submit(whereabouts, 7).result(COLD)
    assert result["prefix"] == str(venv_bin.parent)
    assert result["number"] == 7
    assert result["pid"] in stock_bed.processes()


def test_same_configuration_reaches_same_user_endpoint(stock_bed: Bed):
    with stock_bed.executor() as executor:
        executor.submit(whereabouts, 1).result(COLD)
        before = stock_bed.uep_pids()
        executor.submit(whereabouts, 2).result(WARM)
    assert len(before) == 1
    assert stock_bed.uep_pids() == before


def test_many_tasks_each_give_their_own_result(stock_bed: Bed):
    with stock_bed.executor() as executor:
        futures = [executor.submit(whereabouts, number) for number in range(200)]
        numbers = [future.result(COLD)["number"] for future in futures]
    assert numbers == list(range(200))


def test_exception_of_function_reaches_client(stock_bed: Bed):
    with stock_bed.executor() as executor:
        future = executor.submit(stumble)
        error = future.exception(COLD)
    assert isinstance(error, TaskExecutionFailed)
    assert "lost in the woods" in str(error)
    assert (
        stock_bed.result_message(future)["error_details"]["code"]
        == "RemoteExecutionError"
    )


def test_shell_function_runs(stock_bed: Bed):
    with stock_bed.executor(code_strategy=DillCode()) as executor:
        result = executor.submit(ShellFunction("echo from $0; exit 3")).result(COLD)
    assert result.returncode == 3
    assert "from" in result.stdout


def test_task_can_be_polled_instead(stock_bed: Bed):
    with stock_bed.executor() as executor:
        future = executor.submit(whereabouts, 5)
        future.result(COLD)
    task = stock_bed.client().get_task(future.task_id)
    assert task["status"] == "success"
    assert task["result"]["number"] == 5


def test_resource_specification_arrives_at_engine(stock_bed: Bed):
    """The stock engine refuses a container spec: proof that it saw one."""
    spec = {"container": {"pip": ["humanize"]}}
    with stock_bed.executor(resource_specification=spec) as executor:
        error = executor.submit(whereabouts, 1).exception(COLD)
    assert "container" in str(error)
    with stock_bed.executor() as executor:
        assert executor.submit(whereabouts, 2).result(WARM)["number"] == 2


def test_status_reports_are_kept(stock_bed: Bed):
    with stock_bed.executor() as executor:
        executor.submit(whereabouts, 1).result(COLD)
    (uep,) = stock_bed.uep_pids()
    report = stock_bed.wait_for_report(lambda report: report.endpoint_id == uep, WARM)
    assert report.says_alive
    assert report.global_state["posix_pid"] == stock_bed.uep_pids()[uep]


def test_start_failure_fails_only_its_own_tasks(stock_bed: Bed):
    misfit = {"workers": "many"}
    with stock_bed.executor(user_endpoint_config=misfit) as executor:
        error = executor.submit(whereabouts, 1).exception(WARM)
    assert "'many' is not of type 'integer'" in str(error)
    with stock_bed.executor() as executor:
        assert executor.submit(whereabouts, 2).result(COLD)["number"] == 2


def test_nothing_is_left_of_bed_stopped_at_work(
    tmp_path: Path, broker: RabbitMQ, venv_bin: Path
):
    started = tmp_path / "started"
    with make_bed(tmp_path / "bed", rabbitmq=broker, venv_bin=venv_bin) as bed:
        future = bed.executor().submit(sleep_long, str(started))
        assert bed.cloud.state.wait_until(started.exists, COLD)
        assert len(bed.processes()) > 3
    assert bed.processes() == {}
    assert future.cancelled()
