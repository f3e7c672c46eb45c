"""Errors keep their fields on the way to the person who can act on them."""

from __future__ import annotations

import pickle

import pytest

from globus_compute_apptainer import errors

SAMPLES = [
    errors.ContainerError("m", hint="h", log="/l", code="c"),
    errors.SpecError("m", field="pip[2]", value="'x'", nearest="pip"),
    errors.PolicyError("m", field="post"),
    errors.ConfigError("m", key="build.timeout", nearest="timeout"),
    errors.BuildError("m", stage="pip", command="uv pip", tail=("a", "b"), log="/l"),
    errors.StoreError("m", path="/cache", code="disk-full"),
    errors.HostError("m", code="apptainer-missing"),
    errors.TaskError("m", ended="signal SIGSEGV", tail=("x",)),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_pickling_keeps_every_field(error: errors.ContainerError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_every_error_is_one_of_ours_and_says_its_code(
    error: errors.ContainerError,
) -> None:
    assert isinstance(error, errors.ContainerError)
    assert f"[{error.code}]" in str(error).splitlines()[0]


def test_a_build_error_shows_stage_command_tail_hint_and_log() -> None:
    text = errors.BuildError(
        "no such package",
        stage="pip",
        command="uv pip install -r requirements.txt",
        tail=("line 59", "line 60"),
        hint="check the name",
        log="/cache/logs/x.log",
    ).render()
    for part in ("stage: pip", "uv pip install", "| line 60", "check the", "x.log"):
        assert part in text


def test_empty_fields_take_no_line() -> None:
    assert errors.SpecError("bad").render() == "bad [spec-invalid]"
