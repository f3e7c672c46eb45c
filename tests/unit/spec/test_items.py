"""Lists and texts are two spellings of one thing."""

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.items import (
    MAX_ITEMS,
    checked,
    package_lines,
    requirement_lines,
)
from globus_compute_apptainer.spec.refusal import Refusal


def lower(entry):
    if entry == "bad":
        raise Refusal("is bad")
    return entry.lower()


def check(value):
    return checked("f", value, requirement_lines, lower)


def test_entries_are_checked_sorted_and_unique():
    assert check(["B", " a\n", "b"]) == ("a", "b")
    assert check("B\na\n\nb") == ("a", "b")
    assert check([]) == check("") == check("# nothing\n") == ()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (["a", "bad"], "f[1]"),
        ("a\n\nbad", "f[line 3]"),
        (["a", None], "f[1]"),
        (["a", 3], "f[1]"),
        (["a", ["b"]], "f[1]"),
        (["a", " "], "f[1]"),
        (3, "f"),
        ({"a": "b"}, "f"),
        (True, "f"),
        (["a"] * (MAX_ITEMS + 1), "f"),
        ("a\n" * (MAX_ITEMS + 1), "f"),
    ],
)
def test_errors_name_the_entry(value, field):
    with pytest.raises(SpecError) as caught:
        check(value)
    assert caught.value.field == field


def test_a_wrong_type_says_got_and_expected():
    with pytest.raises(SpecError, match="is a number; expected a list of strings"):
        check(3)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb", [(1, "a"), (2, "b")]),
        ("\ufeffa\r\nb\r\n", [(1, "a"), (2, "b")]),
        ("# c\n\n  a  # d\nb#e", [(3, "a"), (4, "b#e")]),
        ("a \\\n >=1\nb", [(1, "a  >=1"), (3, "b")]),
        ("a\\\n# comment ends it\nb", [(1, "a"), (3, "b")]),
        ("# no continuation \\\na", [(2, "a")]),
        ("a\\", [(1, "a")]),
        ("a\\\n\\\n\\\n", [(1, "a")]),
        ("\\\n\n", []),
    ],
)
def test_requirements_txt(content, lines):
    assert list(requirement_lines(content)) == lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("git\ncurl\n", [(1, "git"), (2, "curl")]),
        ("# c\ngit  curl # d\r\n", [(2, "git"), (2, "curl")]),
        ("\n\n", []),
    ],
)
def test_apt_txt(content, lines):
    assert list(package_lines(content)) == lines
