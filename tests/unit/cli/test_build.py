"""``build``: anew, from what people have, and exactly as a lock says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.cli.origins import KINDS

SPEC = '{"base_image": "python:3.11-slim", "pip": ["pandas"], "name": "ml"}'


def test_it_is_built_anew_on_request(call, builder: Any) -> None:
    call("build", SPEC)
    assert json.loads(call("build", "--json", SPEC)[1])["cache"] == "hit"
    for option in ("--fresh", "--force"):
        _, out, _ = call("build", "--json", option, SPEC)
        assert json.loads(out)["cache"] == "built"
    assert [order.fresh for order in builder.orders] == [False, True, True]


def test_an_image_that_is_too_old_is_made_anew(call, builder: Any) -> None:
    spec = json.dumps({**json.loads(SPEC), "refresh": "1m"})
    call("build", spec)
    assert json.loads(call("build", "--json", spec)[1])["cache"] == "hit"
    assert len(builder.builds) == 1


def test_it_is_complete_when_it_returns(call, builder: Any, tmp_path) -> None:
    file = tmp_path / "layer.sqfs"
    file.write_bytes(b"not a real layer")
    builder.layers = (Layer("pip", "sha256:" + "0" * 64, file),)
    _, out, _ = call("build", "--json", SPEC)
    assert builder.compiled == [Path(json.loads(out)["path"])]


@pytest.mark.parametrize("way", [[], ["--from"]])
def test_what_people_have_is_known_by_its_name(call, builder, tmp_path, way) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("-r more.txt\nsix\n")
    (tmp_path / "more.txt").write_text("rich\n")
    status, out, err = call("build", "--json", "--python", "3.12", *way, str(path))
    assert (status, err) == (0, "")
    spec = json.loads(out)["spec"]
    assert (spec["pip"], spec["python"]) == (["rich", "six"], "3.12")


def test_a_file_that_is_not_known_by_its_name(call, builder, tmp_path) -> None:
    (tmp_path / "poetry.lock").write_text("")
    status, _, err = call("build", "--from", str(tmp_path / "poetry.lock"))
    assert status == 2
    assert KINDS in err
    assert builder.builds == []


def locked(call, tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """A lock file, and the manifest that it is from."""
    manifest = json.loads(call("build", "--json", SPEC)[1])
    path = tmp_path / "lock.json"
    document = {**manifest["lock"], "spec": manifest["spec"], **changes}
    path.write_text(json.dumps(document))
    return path, manifest


def test_exactly_what_a_lock_says(call, locking: Any, tmp_path: Path) -> None:
    path, manifest = locked(call, tmp_path)
    status, out, err = call("build", "--json", "--locked", str(path))
    assert (status, err) == (0, "")
    again = json.loads(out)
    assert (again["cache"], again["spec_digest"]) == ("built", manifest["spec_digest"])
    order = locking.orders[-1]
    assert order.locked.pip[0].startswith("pandas==2.3.0 --hash=sha256:")
    assert not order.fresh

    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest))
    assert call("build", "--locked", str(file))[0] == 0


def test_an_image_that_came_out_otherwise(call, locking: Any, tmp_path: Path) -> None:
    path, _ = locked(call, tmp_path)
    packages = [{"name": "pandas", "version": "2.3.1", "hashes": []}]
    locking.lock = {**locking.lock, "pip": {"packages": packages}}
    status, _, err = call("build", "--locked", str(path))
    assert status == 1
    assert "lock-unavailable" in err
    assert "pip pandas: 2.3.0 → 2.3.1" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec": {}}, "what was asked for"),
        ({"spec": {"format": 1, "agent": "docker", "base_image": "a"}}, "version"),
        ({"format": 7}, "format 7"),
    ],
)
def test_a_lock_that_is_none(call, locking, tmp_path, changes, says) -> None:
    path, _ = locked(call, tmp_path, **changes)
    status, _, err = call("build", "--locked", str(path))
    assert status == 2
    assert "lock-invalid" in err
    assert says in err
    assert len(locking.builds) == 1


def test_policy_holds_for_locks_too(call, locking, tmp_path: Path) -> None:
    path, manifest = locked(call, tmp_path)
    spec = {**manifest["spec"], "post": ["true"]}
    path.write_text(json.dumps({**manifest["lock"], "spec": spec}))
    status, _, err = call("build", "--locked", str(path))
    assert status == 2
    assert "policy-denied" in err


@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("spec.json", "--python"),
        ('{"pip": ["six"]}', "--extra"),
        ("requirements.txt", "--group"),
        ("environment.yml", "--skip"),
        ("folder", "--extra"),
        ("--locked=spec.json", "--python"),
    ],
)
def test_what_would_be_passed_over_is_refused(
    call, builder, tmp_path: Path, monkeypatch, what: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("requirements.txt", "environment.yml", "folder/requirements.txt"):
        (tmp_path / name).write_text("six")
    (tmp_path / "spec.json").write_text('{"pip": ["six"]}')
    status, _, err = call("build", what, option, "3.12")
    assert status == 2
    assert f"{option} cannot be used with " in err
    assert builder.builds == []


def test_one_thing_at_a_time(call, capsys) -> None:
    for arguments in (["build"], ["build", "--locked", "a", "{}"]):
        with pytest.raises(SystemExit):
            call(*arguments)
    assert "usage:" in capsys.readouterr().err
