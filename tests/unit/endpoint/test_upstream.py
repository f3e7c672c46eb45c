"""The window of versions, and errors as upstream carries them."""

from __future__ import annotations

import uuid

import pytest

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.errors import BuildError

GOOD = {
    "globus-compute-endpoint": "4.16.0",
    "globus-compute-sdk": "4.16.0",
    "parsl": "2026.7.27",
}


def test_what_is_installed_here_is_inside() -> None:
    assert upstream.outside_window() == ""


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("globus-compute-endpoint", "4.15.1"),
        ("globus-compute-endpoint", "5.0.0"),
        ("globus-compute-sdk", "4.2"),
        ("parsl", "2026.1.5"),
    ],
)
def test_what_is_outside_is_named_in_one_line(package: str, version: str) -> None:
    line = upstream.outside_window({**GOOD, package: version}.__getitem__)
    assert f"{package} {version}" in line
    assert "\n" not in line


@pytest.mark.parametrize("version", ["4.16.0", "4.19.0", "4.99.0", "4.20.0a1"])
def test_releases_of_the_window_pass(version: str) -> None:
    versions = {**GOOD, "globus-compute-endpoint": version}
    assert upstream.outside_window(versions.__getitem__) == ""


def test_an_error_result_carries_text_and_code_and_no_environment(
    unpack_result,
) -> None:
    task_id = uuid.uuid4()
    error = BuildError("no such package", stage="pip", code="package-not-found")
    result = unpack_result(upstream.error_result(task_id, error))
    assert result.task_id == task_id
    assert result.is_error
    assert result.error_details.code == "package-not-found"
    assert "stage: pip" in result.data
    assert result.details is None
