"""YAML as people write it into an environment.yml, and nothing else of YAML."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.spec.document import MAX_DEPTH, tree
from globus_compute_apptainer.spec.refusal import Refusal


def test_scalars_are_texts() -> None:
    content = "a: 3.10\nb: no\nc: ~\nd:\ne: [1, 'x']\n"
    assert tree(content) == {"a": "3.10", "b": "no", "c": "~", "d": "", "e": ["1", "x"]}


def test_characters_that_json_writes_in_halves() -> None:
    assert tree(json.dumps(["\N{SNAKE}"])) == ["\N{SNAKE}"]


def test_nothing_is_nothing() -> None:
    assert tree("") is None
    assert tree("# only a comment\n") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: &x 1\nb: *x", "anchor or alias (line 1)"),
        ("a: 1\na: 2", "twice (line 2)"),
        ("a: !!binary aGk=", "tag (line 1)"),
        ("? [a]\n: b", "not a text"),
        ("a: 1\n---\nb: 2", "several"),
        ("[" * (MAX_DEPTH + 2), "nested too deeply"),
        ('a: "\\ud800"', "not valid Unicode"),
        ("a: b: c", "not YAML"),
        ("a: [1", "not YAML"),
        ("a: \x00", "not YAML"),
    ],
)
def test_refused(content: str, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        tree(content)
    assert words in caught.value.reason


@given(st.recursive(st.text("ab é#:-", max_size=5), st.lists, max_leaves=8))
def test_json_is_yaml(value: object) -> None:
    try:
        assert tree(json.dumps(value)) == value
    except Refusal as refusal:
        assert "nested" in refusal.reason


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(content: str) -> None:
    try:
        tree(content)
    except Refusal as refusal:
        assert refusal.reason
