"""Variables in a child: whatever tasks do to them, the next one has its worker's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from globus_compute_apptainer.worker.inside.variables import Variables

WORKERS = {"PARSL_A": "1", "OMP_NUM_THREADS": "4"}
FIRST = {"GC_TASK_UUID": "1"}
SECOND = {"GC_TASK_UUID": "2"}


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.pop("TMPDIR", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def variables() -> Variables:
    """They were lent to a first task."""
    found = Variables()
    found.lend(WORKERS, FIRST)
    return found


def lent() -> dict[str, str]:
    names = ("PARSL_A", "OMP_NUM_THREADS", "GC_TASK_UUID", "GC_TASK_SANDBOX_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}


def test_what_was_sent_once_stays(variables: Variables) -> None:
    variables.lend(WORKERS, SECOND)
    assert lent() == {**WORKERS, **SECOND}


@pytest.mark.parametrize("name", ["PARSL_A", "GC_TASK_UUID"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "and once more"])
def test_what_a_task_changes_is_set_right(
    variables: Variables, name: str, again: bool
) -> None:
    if again:
        variables.lend(WORKERS, SECOND)
    for act in (lambda: os.environ.pop(name), lambda: os.environ.update({name: "?"})):
        act()
        variables.lend(WORKERS, SECOND)
        assert lent() == {**WORKERS, **SECOND}


def test_what_the_worker_has_no_more_goes(variables: Variables) -> None:
    variables.lend({"PARSL_A": "2"}, SECOND)
    assert lent() == {"PARSL_A": "2", **SECOND}


def test_what_is_told_of_one_task_is_not_told_of_another(variables: Variables) -> None:
    variables.lend(WORKERS, {**SECOND, "GC_TASK_SANDBOX_DIR": "/sandbox"})
    assert lent()["GC_TASK_SANDBOX_DIR"] == "/sandbox"
    variables.lend(WORKERS, FIRST)
    assert "GC_TASK_SANDBOX_DIR" not in lent()


def test_what_a_task_sets_besides_stays_as_on_the_host(variables: Variables) -> None:
    os.environ["OF_THE_USER"] = "yes"
    for about in (SECOND, FIRST):
        variables.lend(WORKERS, about)
        assert os.environ["OF_THE_USER"] == "yes"
        assert lent() == {**WORKERS, **about}


def test_programs_see_what_was_set(variables: Variables) -> None:
    variables.lend(WORKERS, SECOND)
    assert os.popen("echo $PARSL_A $GC_TASK_UUID").read() == "1 2\n"


def test_a_scratch_folder_that_is_not_inside_is_not_named(variables, tmp_path) -> None:
    variables.lend({"TMPDIR": str(tmp_path / "no")}, SECOND)
    assert "TMPDIR" not in os.environ
    variables.lend({"TMPDIR": str(tmp_path)}, SECOND)
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert "TMPDIR" in variables
    assert "PARSL_A" not in variables
