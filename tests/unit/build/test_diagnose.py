"""Real messages of real programs, each with the cause that a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build.diagnose import UNKNOWN, diagnose

# The other messages are of bases from a registry.
AGENTS = {"pull-no-file": "localimage", "pull-not-an-image": "localimage"}
MESSAGES = sorted((Path(__file__).parent / "messages").glob("*.txt"))


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_known_cause_is_recognised(path: Path):
    """The first line of a file says what is expected: CODE: words of the message."""
    expected, *lines = path.read_text().splitlines()
    code, _, words = expected.partition(": ")
    found = diagnose(path.stem.split("-")[0], lines, AGENTS.get(path.stem, "docker"))
    assert found.code == code
    assert words in found.message
    assert bool(found.hint) == (found != UNKNOWN)


def test_there_are_messages_of_every_stage():
    assert {path.stem.split("-")[0] for path in MESSAGES} >= {"pull", "apt", "pip"}


def test_nothing_known():
    assert diagnose("post", ["+ false"]) == UNKNOWN
    assert diagnose("post", ["Connection refused"]) == UNKNOWN
    assert diagnose("pip", []) == UNKNOWN


def test_a_full_disk_may_be_of_either_place():
    found = diagnose("pull", ["write /home/me/.apptainer/x: Disk quota exceeded"])
    assert found.code == "disk-full"
    assert "`build.tmp_dir`" in found.hint
    assert "APPTAINER_CACHEDIR" in found.hint


@pytest.mark.parametrize("agent", ["docker", "oras", "library"])
def test_a_file_that_is_missing_is_the_base_only_where_that_is_a_file(agent: str):
    lines = [
        "FATAL:   packer failed to pack: lstat /scratch/x: no such file or directory"
    ]
    assert diagnose("pull", lines, agent) == UNKNOWN
    assert diagnose("pull", lines, "localimage").code == "base-not-found"


def test_a_registry_denies_and_a_file_system_does_too():
    lines = ["FATAL:   While performing build: permission denied: /scratch/x"]
    assert diagnose("pull", lines) == UNKNOWN
    lines = ["denied: requested access to the resource is denied"]
    assert diagnose("pull", lines).code == "base-not-found"


@pytest.mark.parametrize(
    "line", ["user.max_user_namespaces = 0", "sh: fakeroot: not found"]
)
def test_what_runs_inside_says_nothing_of_this_machine(line: str):
    for stage in ("apt", "pip", "post"):
        assert diagnose(stage, [line, "FATAL: something else"]) == UNKNOWN
    assert "this machine" in diagnose("pull", [line]).message
