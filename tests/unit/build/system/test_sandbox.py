"""A base unpacked for programs to run in."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer.build.system import sandbox
from globus_compute_apptainer.build.system.plan import KIT


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    tree, packed = tmp_path / "tree", tmp_path / "base.sqfs"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hosts").write_text("kept")
    (tree / "etc/with blank").write_bytes(bytes(5000))
    (tree / "var").symlink_to("/elsewhere")
    subprocess.run(["mksquashfs", tree, packed, "-quiet"], check=True, timeout=60)
    return packed


def run(folder: Path, packed: Path, **more: object) -> int:
    order = {
        "tree": str(folder / "base"),
        "base": [str(packed)],
        "unsquashfs": "unsquashfs",
        "processors": 1,
        "most": 10**6,
        "before": str(folder / "before.json"),
        **more,
    }
    told = folder / "order.json"
    told.write_text(json.dumps(order))
    return sandbox.main(str(told))


def test_what_is_in_it_is_noted(tmp_path: Path, packed: Path):
    run(tmp_path, packed)
    tree, noted = tmp_path / "base", json.loads((tmp_path / "before.json").read_text())
    assert (tree / "etc/hosts").read_text() == "kept"
    assert set(noted["etc"]) == {"hosts", "localtime", "resolv.conf", "with blank"}
    assert noted["."]["etc"] == (tree / "etc").stat().st_ino
    assert set(noted) >= {".", "etc", "dev", "proc", "sys", "tmp", KIT.lstrip("/")}


def test_no_link_of_a_base_is_followed(tmp_path: Path, packed: Path):
    run(tmp_path, packed)
    assert os.readlink(tmp_path / "base/var") == "/elsewhere"
    assert not Path("/elsewhere").exists()


def test_what_is_written_later_has_a_later_time(tmp_path: Path, packed: Path):
    run(tmp_path, packed)
    (tmp_path / "base/etc/hosts").write_text("new")
    noted = (tmp_path / "before.json").stat().st_ctime_ns
    assert (tmp_path / "base/etc/hosts").stat().st_ctime_ns > noted
    assert (tmp_path / "base/etc/with blank").stat().st_ctime_ns <= noted


def test_a_base_that_holds_too_much_is_not_unpacked(tmp_path: Path, packed: Path):
    assert sandbox.held("unsquashfs", [str(packed)]) == 5004
    assert run(tmp_path, packed, most=5003) == 0
    assert not (tmp_path / "before.json").exists()
    assert not (tmp_path / "base").exists()


def test_a_base_that_cannot_be_unpacked_is_an_error(tmp_path: Path, packed: Path):
    os.truncate(packed, 100)
    with pytest.raises(subprocess.CalledProcessError):
        run(tmp_path, packed)
    assert not (tmp_path / "before.json").exists()
