"""What people read of one image, and how they name it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from tests.unit.cli.conftest import SHA

from globus_compute_apptainer.cli.show import age

SPEC = '{"base_image": "python:3.11-slim", "pip": ["pandas"], "name": "ml"}'
NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@pytest.fixture
def built(call, locking: Any) -> dict[str, Any]:
    return json.loads(call("build", "--json", SPEC)[1])


def test_all_that_is_known_is_shown(call, built) -> None:
    status, out, err = call("show", "ml")
    assert (status, err) == (0, "")
    for part in (
        built["image_digest"],
        built["spec_digest"],
        built["path"],
        built["log"],
        "docker://python:3.11-slim",
        "sha256:" + "b" * 64,
        "pandas 2.3.0",
        "uv          0.9.1",
        "resolved ",
        "layered",
    ):
        assert part in out


@pytest.mark.parametrize("form", ["name", "image", "spec digest", "short", "spec"])
def test_any_name_will_do(call, built, form: str) -> None:
    argument = {
        "name": "ml",
        "image": built["image_digest"],
        "spec digest": built["spec_digest"],
        "short": built["image_digest"][7:19],
        "spec": '{"base_image": "python:3.11-slim", "pip": "pandas"}',
    }[form]
    status, out, _ = call("show", "--json", argument)
    assert status == 0
    assert json.loads(out)["image_digest"] == built["image_digest"]


def test_the_newest_of_a_name(call, built) -> None:
    other = json.dumps({"python": "3.11", "pip": ["six"], "name": "ml"})
    newer = json.loads(call("build", "--json", other)[1])
    found = json.loads(call("show", "--json", "ml")[1])
    newest = max((built, newer), key=lambda report: report["created"])
    assert found["created"] == newest["created"]


@pytest.mark.parametrize("argument", [SHA, "0000000000", '{"python": "3.12"}'])
def test_an_image_that_is_not_there(call, built, argument: str) -> None:
    status, out, err = call("show", argument)
    assert (status, out) == (1, "")
    assert "image-not-built" in err


def test_what_names_nothing(call, built) -> None:
    status, _, err = call("show", "mll")
    assert status == 1
    assert "'mll'" in err
    assert "image-not-built" in err


def test_why_an_image_is_flat(call, locking: Any) -> None:
    import dataclasses

    build = locking.build
    locking.build = lambda *a, **k: dataclasses.replace(
        build(*a, **k), reason="the configuration says so"
    )
    _, out, _ = call("build", SPEC)
    assert "flat    the configuration says so" in out
    _, out, _ = call("show", "ml")
    assert "flat, since the configuration says so" in out


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        (timedelta(days=3, hours=2), "3 days ago"),
        (timedelta(days=1), "1 day ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(minutes=1, seconds=59), "1 minute ago"),
        (timedelta(seconds=3), "just now"),
        (timedelta(seconds=-3), "just now"),
    ],
)
def test_ages_in_words(ago: timedelta, words: str) -> None:
    assert age((NOW - ago).isoformat(), NOW) == words


def test_ages_that_are_not_known() -> None:
    assert age("", NOW) == ""
    assert age("2026-11-22T11:00:00", NOW) == "1 hour ago"
