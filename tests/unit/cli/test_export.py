"""An image for elsewhere, and the documents beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.record import lock

SPEC = '{"base_image": "python:3.11-slim", "pip": ["pandas"], "name": "ml"}'
FILES = ["image.def", "image.sif", "lock.json", "sbom.cdx.json"]


@pytest.fixture
def built(call, locking: Any) -> dict[str, Any]:
    return json.loads(call("build", "--json", SPEC)[1])


def test_four_files(call, built, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    status, said, err = call("export", "ml", str(out))
    assert status == 0, err
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert said.count("\n") == 4
    assert (out / "image.sif").read_bytes() == Path(built["path"]).read_bytes()
    assert "From: python@sha256:" in (out / "image.def").read_text()
    read = lock.parse((out / "lock.json").read_text())
    assert read.spec == built["spec"]
    sbom = json.loads((out / "sbom.cdx.json").read_text())
    assert sbom["metadata"]["component"]["version"] == built["image_digest"]


def test_the_same_image_gives_the_same_documents(call, built, tmp_path) -> None:
    for name in ("a", "b"):
        call("export", built["image_digest"], str(tmp_path / name))
    for name in FILES:
        first, second = tmp_path / "a" / name, tmp_path / "b" / name
        assert first.read_bytes() == second.read_bytes()


def test_older_files_are_replaced(call, built, tmp_path: Path) -> None:
    (tmp_path / "image.sif").write_text("older")
    _, out, _ = call("export", "--json", "ml", str(tmp_path))
    report = json.loads(out)
    assert report["files"]["image.sif"] == str(tmp_path / "image.sif")
    assert (tmp_path / "image.sif").read_text() != "older"


def test_a_spec_is_built_for_it(call, locking: Any, tmp_path: Path) -> None:
    status, _, err = call("export", SPEC, str(tmp_path / "out"))
    assert status == 0, err
    assert len(locking.builds) == 1


def test_a_digest_that_is_not_there(call, locking: Any, tmp_path: Path) -> None:
    status, _, err = call("export", "00000000", str(tmp_path / "out"))
    assert status == 1
    assert "image-not-built" in err
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(call, built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = call("export", "ml", str(tmp_path / "file" / "out"))
    assert status == 3
    assert "export-failed" in err


def test_an_image_without_a_lock(call, locking: Any, tmp_path: Path) -> None:
    locking.lock = {}
    call("build", SPEC)
    status, _, err = call("export", "ml", str(tmp_path / "out"))
    assert status == 1
    assert "lock-invalid" in err
    assert not (tmp_path / "out").exists()
