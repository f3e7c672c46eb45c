"""Refusals: where they are said, and how values are shown."""

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.refusal import Refusal, blame, kind, show, text


def test_blame_names_field_value_and_reason():
    with pytest.raises(SpecError) as caught, blame("pip[2]", "x y"):
        raise Refusal("is wrong", "write it right", nearest="xy")
    error = caught.value
    assert (error.field, error.value, error.nearest) == ("pip[2]", "'x y'", "xy")
    assert error.render().startswith("pip[2] is wrong [spec-invalid]")
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_blame_leaves_errors_that_are_already_placed():
    placed = SpecError("x", field="inner")
    with pytest.raises(SpecError) as caught, blame("outer", "v"):
        raise placed
    assert caught.value is placed


def test_the_whole_spec_has_no_field():
    error = Refusal("asks for nothing", code="spec-empty").at("", "")
    assert error.message == "the container spec asks for nothing"
    assert (error.field, error.code) == ("", "spec-empty")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (0, "0"),
        (3.5, "3.5"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ([1, 2], "[…] (2 items)"),
        ({"a": 1}, "{…} (1 fields)"),
    ],
)
def test_values_are_shown_on_one_escaped_line(value, shown):
    assert show(value) == shown


def test_long_values_are_shortened():
    assert len(show("x" * 10_000)) < 100


@pytest.mark.parametrize(
    "url",
    [
        "x @ https://user:secret@host/f",
        "docker://user:sec/ret@host/f",
        "https://user:secret@" + "h" * 500,
        "https://" + "secret" * 500 + "@host",
    ],
)
def test_credentials_are_never_shown(url):
    assert "sec" not in show(url)
    assert "***@" in show(url) or len(url) > 500


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1.5, "a number"),
        ("", "a string"),
        ([], "a list"),
        ({}, "an object"),
    ],
)
def test_kinds_are_in_words(value, words):
    assert kind(value) == words


def test_text_is_stripped_and_not_empty():
    assert text("  a b\n") == "a b"
    with pytest.raises(Refusal, match="is empty"):
        text(" \t")
    with pytest.raises(Refusal, match="is a list; expected a string"):
        text([])
