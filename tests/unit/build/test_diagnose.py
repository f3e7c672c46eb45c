"""Real messages of real programs, each with the cause that a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build.diagnose import UNKNOWN, diagnose

MESSAGES = sorted((Path(__file__).parent / "messages").glob("*.txt"))


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_known_cause_is_recognised(path: Path):
    """The first line of a file says what is expected: CODE: words of the message."""
    expected, *lines = path.read_text().splitlines()
    code, _, words = expected.partition(": ")
    found = diagnose(path.stem.split("-")[0], lines)
    assert found.code == code
    assert words in found.message
    assert bool(found.hint) == (found != UNKNOWN)


def test_there_are_messages_of_every_stage():
    assert {path.stem.split("-")[0] for path in MESSAGES} >= {"pull", "apt", "pip"}


def test_nothing_known():
    assert diagnose("post", ["+ false"]) == UNKNOWN
    assert diagnose("post", ["Connection refused"]) == UNKNOWN
    assert diagnose("pip", []) == UNKNOWN
