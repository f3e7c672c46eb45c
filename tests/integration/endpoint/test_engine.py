"""The engine on real parts: Parsl's HTEX with worker processes, and Apptainer."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk import ShellFunction

from .conftest import worker_process


def double(x: int) -> int:
    return x * 2


def where_am_i(*_: int) -> dict[str, Any]:
    import importlib.util
    import os
    import sys

    with open("/etc/os-release") as release:
        name = next(line for line in release if line.startswith("PRETTY_NAME"))
    return {
        "pid": os.getpid(),
        "inside": "APPTAINER_CONTAINER" in os.environ,
        "python": sys.version_info[:2],
        "os": name,
        "cwd": os.getcwd(),
        "humanize": importlib.util.find_spec("humanize") is not None,
        "endpoint": importlib.util.find_spec("globus_compute_endpoint") is not None,
    }


def test_a_task_without_a_spec_runs_on_the_host(engine, submit, value) -> None:
    found = value(submit(engine, None, where_am_i))
    assert not found["inside"]
    assert found["endpoint"]


@pytest.mark.apptainer
def test_fifty_tasks_with_one_new_spec_cost_one_build(
    engine, submit, value, spec
) -> None:
    built = engine.get_status_report().global_state["containers"]["built"]
    futures = [submit(engine, spec, double, n) for n in range(50)]
    assert [value(f) for f in futures] == [2 * n for n in range(50)]
    counts = engine.get_status_report().global_state["containers"]
    assert counts["built"] == built + 1
    assert counts["waiting_tasks"] == 0


@pytest.mark.apptainer
def test_a_task_runs_inside_its_image_with_nothing_of_globus_in_it(
    engine, submit, value, spec
) -> None:
    found = value(submit(engine, spec, where_am_i))
    assert found["inside"]
    assert found["humanize"]
    assert not found["endpoint"]
    assert found["cwd"] == str(engine.working_dir)


@pytest.mark.apptainer
def test_an_image_without_python_runs_a_shell_function(
    engine, submit, value, unpack_result, registry
) -> None:
    bare = {"base_image": f"{registry}/nopython:latest", "env": {"OWN": "x"}}
    command = ShellFunction("echo $OWN $GC_TASK_UUID; type python3 >&2")
    future = submit(engine, bare, command)
    result = value(future)
    assert result.stdout == f"x {future.gc_task_id}\n"
    assert (result.returncode, result.cmd) == (1, command.cmd)
    refused = unpack_result(submit(engine, bare, double, 1).result(300))
    assert refused.error_details.code == "no-python"


@pytest.mark.apptainer
def test_details_come_from_inside_and_name_the_container(
    engine, submit, unpack_result, spec
) -> None:
    result = unpack_result(submit(engine, spec, double, 1).result(300))
    assert result.details["python_version"].startswith("3.11.")
    assert result.details["endpoint_id"] == str(engine.endpoint_id)
    container = result.details["container"]
    assert container["spec_digest"].startswith("sha256:")
    assert container["cache"] in {"hit", "built", "shared"}
    states = [status.state.name for status in result.task_statuses]
    assert states == ["EXEC_START", "EXEC_END"]


@pytest.mark.apptainer
def test_a_warm_container_serves_many_tasks(engine, submit, value, spec) -> None:
    value(submit(engine, spec, double, 1))
    pids = {value(submit(engine, spec, where_am_i))["pid"] for _ in range(10)}
    assert len(pids) <= 2  # one per worker


@pytest.mark.apptainer
def test_good_bad_and_plain_tasks_side_by_side(
    engine, submit, value, unpack_result, spec, registry
) -> None:
    bad = {**spec, "pip": ["no-such-package-xyz"]}
    lost = {"base_image": f"{registry}/no-such-image:1"}
    down = {"base_image": "127.0.0.1:9/python:3.11-slim"}
    futures = {
        "pip": submit(engine, bad, double, 1),
        "base": submit(engine, lost, double, 1),
        "down": submit(engine, down, double, 1),
        "spec": submit(engine, {"pipp": []}, double, 1),
    }
    assert value(submit(engine, spec, double, 4)) == 8
    assert value(submit(engine, None, double, 4)) == 8
    errors = {key: unpack_result(f.result(300)) for key, f in futures.items()}
    codes = {key: error.error_details.code for key, error in errors.items()}
    assert codes == {
        "pip": "package-not-found",
        "base": "base-not-found",
        "down": "registry-unreachable",
        "spec": "spec-invalid",
    }
    assert "stage: pip" in errors["pip"].data
    assert "no-such-package-xyz" in errors["pip"].data
    assert value(submit(engine, spec, double, 5)) == 10


@pytest.mark.apptainer
def test_monitoring_places_container_tasks_too(
    engine, submit, value, spec, tmp_path: Path
) -> None:
    placed = Path(engine.working_dir) / f"placed-{tmp_path.name}"
    future = submit(engine, spec, wait_for, str(placed))
    deadline = time.monotonic() + 240
    # Told of all tasks on a manager, whenever it gets or ends one.
    while future.block_id is None and not future.done():
        assert time.monotonic() < deadline
        assert value(submit(engine, None, double, 1)) == 2
    placed.touch()
    assert value(future)
    assert future.block_id is not None
    assert future.job_id is not None


def wait_for(path: str) -> bool:
    import os
    import time

    deadline = time.monotonic() + 300
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.path.exists(path)


def test_hand_overs_from_many_threads_reach_a_real_executor(
    engine, submit, value
) -> None:
    """Parsl's outgoing socket is not safe between threads; the engine's lock is."""
    start, futures = threading.Barrier(16), []

    def flood() -> None:
        start.wait()
        futures.extend([submit(engine, None, double, n) for n in range(60)])

    threads = [threading.Thread(target=flood) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(value(future) for future in futures) == 16 * 2 * sum(range(60))


@pytest.mark.apptainer
def test_hand_overs_from_builds_retries_and_the_task_thread_mix(
    engine, submit, value, spec
) -> None:
    value(submit(engine, spec, double, 1))
    specs = [{**spec, "post": None, "env": {"N": str(n)}} for n in range(2)]
    start, futures = threading.Barrier(8), []

    def flood(which: object) -> None:
        start.wait()
        futures.extend([submit(engine, which, double, n) for n in range(40)])

    kinds = [None, None, None, None, *specs, *specs]
    threads = [threading.Thread(target=flood, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(value(future) for future in futures) == 8 * 2 * sum(range(40))


def test_the_working_directory_does_not_nest(engine, submit, value) -> None:
    """Upstream: ``test_engine_working_dir``."""
    first = value(submit(engine, None, where_am_i))["cwd"]
    assert value(submit(engine, None, where_am_i))["cwd"] == first


@pytest.mark.apptainer
def test_a_lost_worker_is_retried_in_its_container(
    make_engine, submit, value, spec
) -> None:
    """Upstream: ``test_gcengine_retries``; here a worker really dies."""
    engine = make_engine(max_retries_on_system_failure=2)
    future = submit(engine, spec, wait_the_first_time, "in-the-working-directory")
    marker = Path(engine.working_dir) / "in-the-working-directory"
    deadline = time.monotonic() + 300
    while not (marker.exists() and marker.read_text()):
        assert time.monotonic() < deadline and not future.done()
        threading.Event().wait(0.05)
    # Only this one: a worker that waits for work holds a lock of the others'.
    os.kill(worker_process(engine.run_dir, marker.read_text()), signal.SIGKILL)
    assert value(future) == "second attempt"


def wait_the_first_time(marker: str) -> str:
    import os
    import signal

    if os.path.exists(marker):
        return "second attempt"
    with open(marker, "w") as file:
        file.write(os.environ["PARSL_WORKER_RANK"])
    signal.pause()
    return "unreachable"


@pytest.mark.apptainer
def test_shutting_down_leaves_no_process(make_engine, submit, value, spec) -> None:
    engine = make_engine()
    value(submit(engine, spec, double, 1))
    mine = f"{engine.run_dir}".encode()
    assert len(_processes_naming(mine)) > 3  # containers are started in that folder
    engine.shutdown()
    make_engine.forget(engine)  # upstream's shutdown works once
    deadline = time.monotonic() + 120
    while _processes_naming(mine) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert _processes_naming(mine) == []


def _processes_naming(text: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if text in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
