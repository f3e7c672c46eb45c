"""The verb ``prune``: what goes, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

SPECS = [
    json.dumps({"base_image": "python:3.11-slim", "pip": [name]}) for name in ("a", "b")
]


@pytest.fixture
def full(call, builder):
    """A cache with two images; their paths."""
    reports = [call("build", "--json", spec)[1] for spec in SPECS]
    return [Path(json.loads(report)["path"]) for report in reports]


def test_what_is_unused_goes(call, full) -> None:
    status, out, _ = call("prune")
    assert status == 0
    assert "images" in out
    assert " freed: 0 " in out
    assert not any(path.exists() for path in full)


def test_a_dry_run_removes_nothing(call, full) -> None:
    status, out, _ = call("prune", "--dry-run", "--to", "0")
    assert status == 0
    assert "would be freed" in out
    assert all(path.exists() for path in full)


def test_so_much_may_stay(call, full) -> None:
    _, out, _ = call("prune", "--to", "1GB", "--json")
    report = json.loads(out)
    assert (report["removed"], report["limit"]) == ([], 10**9)
    _, out, _ = call("prune", "--to", str(report["left"] - 1), "--json")
    report = json.loads(out)
    assert [thing["kind"] for thing in report["removed"]] == ["images"]
    assert report["before"] - report["left"] == report["freed"] > 0
    assert sum(path.exists() for path in full) == 1


def test_old_logs_and_locks_go_too(call, full) -> None:
    top = full[0].parents[4]
    for place in (*top.glob("locks/*"), *top.glob("logs/*/*/*")):
        os.utime(place, (1, 1))
    _, out, _ = call("prune", "--dry-run", "--to", "1GB", "--json")
    report = json.loads(out)
    assert (report["old_logs"], report["old_locks"]) == (0, 2)
    _, out, _ = call("prune", "--to", "1GB")
    assert "0 old build logs (0 B) and 2 old locks removed" in out
    assert [p.name for p in top.glob("locks/*") if p.is_dir()] == ["room"]
    call("prune")
    _, out, _ = call("prune", "--dry-run")
    assert "2 old build logs" in out
    assert "would be removed" in out


def test_caches_of_other_versions_are_named_and_left_alone(call, full) -> None:
    other = full[0].parents[4].with_name("v1")
    (other / "images").mkdir(parents=True)
    _, out, _ = call("prune")
    assert f"{other} is a cache of another version" in out
    assert (other / "images").exists()


@pytest.mark.parametrize("size", ["", "-1", "much", "1XB"])
def test_what_is_no_size_is_refused(call, size: str) -> None:
    status, _, err = call("prune", "--to", size)
    assert status == 2
    assert "--to" in err


def test_an_empty_cache(call) -> None:
    status, out, _ = call("prune")
    assert (status, out.count("freed")) == (0, 1)
