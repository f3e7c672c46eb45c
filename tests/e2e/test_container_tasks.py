"""Tasks that bring their own image: real SDK, real endpoint, real Apptainer.

One endpoint from the workstation template serves all of these; its image cache starts
out empty, so the first test of each spec pays for a build.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from globus_compute_sdk import ShellFunction
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import DillCode, JSONData

if TYPE_CHECKING:
    from pathlib import Path

    from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

    from loopback.testbed import Bed

pytestmark = pytest.mark.apptainer

BUILD = 300
WARM = 60
PYTHON_311 = "python:3.11-slim"


def humanized(number):
    import humanize

    return humanize.intcomma(number)


def surroundings():
    """Where a task finds itself; works on any Python, in an image or on the host."""
    import importlib.util
    import pathlib
    import sys

    def importable(name):
        return importlib.util.find_spec(name) is not None

    return {
        "in_container": pathlib.Path("/.singularity.d").exists(),
        "os_release": pathlib.Path("/etc/os-release").read_text(),
        "prefix": sys.prefix,
        "python": ".".join(map(str, sys.version_info[:2])),
        "has_endpoint": importable("globus_compute_endpoint"),
        "has_parsl": importable("parsl"),
        "has_humanize": importable("humanize"),
        "has_colorama": importable("colorama"),
    }


def divide(a, b):
    return a / b


@pytest.fixture
def bed(container_bed: Bed) -> Bed:
    return container_bed


@pytest.fixture
def with_humanize(image_registry: str) -> dict[str, Any]:
    """The spec that most tests share, so that it is built once."""
    return container(image_registry, pip=["humanize"])


def container(registry: str, image: str = PYTHON_311, **fields: Any) -> dict[str, Any]:
    return {"container": {"base_image": f"{registry}/{image}", **fields}}


def run(bed: Bed, spec: dict[str, Any] | None, function, *args) -> ComputeFuture:
    """Submit one task and wait for its end, good or bad."""
    with bed.executor(resource_specification=spec) as executor:
        future = executor.submit(function, *args)
        future.exception(BUILD)
    return future


def error_code(bed: Bed, future: ComputeFuture) -> str:
    assert isinstance(future.exception(), TaskExecutionFailed)
    code: str = bed.result_message(future)["error_details"]["code"]
    return code


def test_task_runs_in_image_built_from_its_spec(bed: Bed, with_humanize, venv_bin):
    python = str(venv_bin / "python")
    on_host = subprocess.run([python, "-c", "import humanize"], capture_output=True)
    assert on_host.returncode, "humanize on the host would make this test worthless"

    assert run(bed, with_humanize, humanized, 1234567).result() == "1,234,567"


def test_image_is_what_base_says_and_has_nothing_of_globus(
    bed: Bed, with_humanize, venv_bin
):
    found = run(bed, with_humanize, surroundings).result()
    assert found["in_container"]
    assert found["has_humanize"]
    assert found["python"] == "3.11"
    assert found["prefix"] != str(venv_bin.parent)
    assert not found["has_endpoint"]
    assert not found["has_parsl"]


def test_endpoint_log_tells_of_the_build(bed: Bed, with_humanize):
    digest = run(bed, with_humanize, humanized, 1)
    spec = bed.result_message(digest)["details"]["container"]["spec_digest"]
    text = "".join(log.read_text() for log in bed.logs())
    assert re.search(rf"image for {spec} ready after [0-9.]+ s", text)


def test_details_say_which_image_ran_the_task(bed: Bed, with_humanize):
    run(bed, with_humanize, humanized, 1)
    future = run(bed, with_humanize, humanized, 2)
    details = bed.result_message(future)["details"]
    assert details["container"]["cache"] == "hit"
    assert details["container"]["spec_digest"].startswith("sha256:")
    assert PYTHON_311 in details["container"]["base"]
    assert details["python_version"].startswith("3.11.")


def test_second_spec_needs_no_second_user_endpoint(
    bed: Bed, with_humanize, image_registry: str
):
    assert run(bed, with_humanize, surroundings).result()["has_humanize"]
    before = bed.uep_pid()
    assert before
    other = container(image_registry, pip=["colorama"])
    found = run(bed, other, surroundings).result()
    assert found["has_colorama"]
    assert not found["has_humanize"]
    assert bed.uep_pid() == before


def seen_of_everything():
    import pathlib
    import shutil
    import subprocess

    import humanize

    found = shutil.which("tool")
    return {
        "humanize": humanize.intcomma(1234567),
        "tool": [found, subprocess.check_output([found], text=True)],
        "post_build": pathlib.Path("/payload/made").read_text(),
    }


def test_conda_and_repo2docker_files_together(bed: Bed, image_registry: str):
    spec = container(
        image_registry,
        conda=["tool"],
        files={
            "requirements.txt": "humanize\n",
            "postBuild": "#!/bin/sh\necho by postBuild >made\n",
        },
    )
    assert run(bed, spec, seen_of_everything).result() == {
        "humanize": "1,234,567",
        "tool": ["/.gc-apptainer/conda/bin/tool", "tool of conda\n"],
        "post_build": "by postBuild\n",
    }


def test_other_python_than_client_and_endpoint(bed: Bed, image_registry: str):
    spec = container(image_registry, "python:3.13-slim")
    found = run(bed, spec, surroundings).result()
    assert found["python"] == "3.13"
    assert "trixie" in found["os_release"]


def test_failed_build_says_stage_and_shows_log(bed: Bed, image_registry: str):
    future = run(
        bed, container(image_registry, pip=["no-such-package-xyz"]), divide, 1, 1
    )
    text = str(future.exception())
    assert "stage: pip" in text
    tail = text.partition("output:")[2]
    assert "no-such-package-xyz" in tail
    log = re.search(r"^ +log: (?P<path>/.+)$", text, re.MULTILINE)
    assert log, text
    assert error_code(bed, future) in {"package-not-found", "build-failed"}


def test_task_without_spec_runs_on_host(bed: Bed, venv_bin: Path):
    future = run(bed, None, surroundings)
    assert not future.result()["in_container"]
    assert future.result()["prefix"] == str(venv_bin.parent)
    assert "container" not in bed.result_message(future)["details"]


def test_good_bad_and_plain_tasks_do_not_disturb_each_other(
    bed: Bed, with_humanize, image_registry: str, venv_bin: Path
):
    bad = container(image_registry, pip=["no-such-package-xyz"])
    specs = [with_humanize, None, bad] * 4
    executors = [bed.executor(resource_specification=spec) for spec in specs]
    futures = [executor.submit(surroundings) for executor in executors]
    for spec, future in zip(specs, futures, strict=True):
        if spec is bad:
            assert "no-such-package-xyz" in str(future.exception(BUILD))
        else:
            assert future.result(BUILD)["in_container"] is (spec is not None)


def test_plain_task_does_not_wait_for_a_build(bed: Bed, image_registry: str):
    run(bed, None, surroundings)
    slow = container(image_registry, "python:3.13-slim", pip=["humanize", "colorama"])
    with bed.executor(resource_specification=slow) as building, bed.executor() as plain:
        built = building.submit(surroundings)
        plain.submit(surroundings).result(WARM)
        assert not built.done(), "the image was there already: nothing was shown"
        assert built.result(BUILD)["has_colorama"]


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ({"bse_image": PYTHON_311}, "spec-invalid", "base_image"),
        ({"base_image": PYTHON_311, "pip": {"a": 1}}, "spec-invalid", "pip"),
        ({"base_image": 311}, "spec-invalid", "base_image"),
        (["python:3.11-slim"], "spec-invalid", "container"),
        ({}, "spec-empty", "empty"),
        ("no-such-name", "image-unknown", "no-such-name"),
    ],
    ids=["unknown-field", "wrong-type", "wrong-base-type", "list", "empty", "no-name"],
)
def test_bad_spec_is_refused_and_endpoint_lives_on(
    bed: Bed, with_humanize, value: object, code: str, words: str
):
    future = run(bed, {"container": value}, divide, 1, 1)
    assert error_code(bed, future) == code
    assert f"[{code}]" in str(future.exception())
    assert words in str(future.exception())
    assert run(bed, with_humanize, humanized, 1000).result() == "1,000"


def test_missing_base_image_is_named(bed: Bed, with_humanize, image_registry: str):
    future = run(bed, container(image_registry, "no-such:1"), divide, 1, 1)
    assert error_code(bed, future) == "base-not-found"
    assert re.search(r"stage: (resolve|pull)", str(future.exception()))
    assert "no-such:1" in str(future.exception())
    assert run(bed, with_humanize, humanized, 1000).result() == "1,000"


def test_exception_of_function_is_the_users_own(bed: Bed, with_humanize):
    future = run(bed, with_humanize, divide, 1, 0)
    assert "ZeroDivisionError: division by zero" in str(future.exception())
    assert error_code(bed, future) == "RemoteExecutionError"


def test_shell_function_runs_in_image(bed: Bed, with_humanize):
    shell = ShellFunction("test -d /.singularity.d && echo {greeting} && exit 3")
    with bed.executor(
        resource_specification=with_humanize, code_strategy=DillCode()
    ) as executor:
        result = executor.submit(shell, greeting="inside").result(BUILD)
    assert (result.returncode, result.stdout) == (3, "inside\n")


def test_result_comes_back_as_client_asked(bed: Bed, with_humanize):
    with bed.executor(
        resource_specification=with_humanize, result_serializers=[JSONData()]
    ) as executor:
        future = executor.submit(humanized, 1000)
        assert future.result(BUILD) == "1,000"
    packed = bed.result_message(future)["data"]
    assert packed.startswith(JSONData.identifier)


def test_status_reports_count_images(bed: Bed, with_humanize):
    run(bed, with_humanize, humanized, 1)
    report = bed.wait_for_report(lambda r: "containers" in r.global_state, WARM)
    assert report.global_state["containers"]["built"] >= 1
    assert report.global_state["containers"]["waiting_tasks"] == 0


def ask(bed: Bed, action: str, **fields: object) -> dict[str, Any]:
    answer: dict[str, Any] = run(
        bed, {"container": {"action": action, **fields}}, divide, 1, 0
    ).result()
    return answer


def test_control_requests_are_answered_by_the_endpoint(bed: Bed, with_humanize):
    spec = with_humanize["container"]
    image = ask(bed, "build", spec=spec)
    assert image["state"] == "ready"
    status = ask(bed, "status", spec=spec)
    assert status["image"] == image["image"]
    assert image["image"] in ask(bed, "list")["images"]
    assert ask(bed, "log", spec=spec)["lines"]
    assert ask(bed, "cancel", spec=spec)["cancelled"] == 0
    by_digest = {"container": image["spec_digest"]}
    assert run(bed, by_digest, humanized, 1000).result() == "1,000"


def test_a_build_can_be_cancelled(bed: Bed, image_registry: str):
    slow = container(image_registry, post=["sleep 601"])
    with bed.executor(resource_specification=slow) as executor:
        future = executor.submit(divide, 1, 1)
        bed.wait_for_report(
            lambda r: r.global_state.get("containers", {}).get("building"), WARM
        )
        assert ask(bed, "status", spec=slow["container"])["state"] == "building"
        assert ask(bed, "cancel", spec=slow["container"])["cancelled"] == 1
        assert isinstance(future.exception(WARM), TaskExecutionFailed)
    assert error_code(bed, future) == "build-cancelled"
    bed.wait_for_report(
        lambda r: r.global_state.get("containers", {}).get("building") == 0, WARM
    )


def test_client_sets_container_for_all_its_tasks(bed: Bed, with_humanize):
    with bed.executor(user_endpoint_config=with_humanize) as executor:
        assert executor.submit(humanized, 1000).result(BUILD) == "1,000"
    assert bed.uep_pid(with_humanize) not in {None, bed.uep_pid()}


def test_stopping_the_endpoint_answers_tasks_that_wait_for_an_image(
    bed: Bed, image_registry: str
):
    """The answer cannot leave a process that is stopping; it leaves with the next."""
    config = {"max_workers_per_node": 1}  # an endpoint of this test's own
    slow = container(image_registry, post=["sleep 600"])
    with (
        bed.executor(
            resource_specification=slow, user_endpoint_config=config
        ) as waiting,
        bed.executor(user_endpoint_config=config) as plain,
    ):
        future = waiting.submit(divide, 1, 1)
        bed.wait_for_report(
            lambda r: r.global_state.get("containers", {}).get("building"), WARM
        )
        pid = bed.uep_pid(config)
        assert pid
        os.kill(pid, signal.SIGTERM)
        bed.wait_for_report(
            lambda r: (
                r.global_state.get("active") is False
                and r.global_state.get("posix_pid") == pid
            ),
            WARM,
        )
        wait_for_end(pid)
        assert plain.submit(divide, 4, 2).result(WARM) == 2
        assert isinstance(future.exception(WARM), TaskExecutionFailed)
    assert error_code(bed, future) in {"endpoint-stopped", "build-cancelled"}


def wait_for_end(pid: int) -> None:
    """Until the process is gone, or a zombie that its parent will collect."""
    handle = os.pidfd_open(pid)
    try:
        assert select.select([handle], [], [], WARM)[0], f"{pid} still runs"
    finally:
        os.close(handle)
