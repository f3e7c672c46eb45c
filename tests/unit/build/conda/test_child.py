"""What packages say of themselves, before anything is done with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

conda_child = pytest.importorskip(
    "globus_compute_apptainer.build.conda.child", reason="py-rattler is not installed"
)


def unpacked(folder: Path, *paths: dict, link: dict | None = None) -> Path:
    """A package as the cache has it."""
    info = folder / "x-1-0" / "info"
    info.mkdir(parents=True)
    (info / "paths.json").write_text(json.dumps({"paths": list(paths)}))
    if link is not None:
        (info / "link.json").write_text(json.dumps(link))
    return info.parent


def listed(path: str, kind: str = "hardlink") -> dict:
    return {"_path": path, "path_type": kind}


def test_an_ordinary_package(tmp_path: Path) -> None:
    points = {"noarch": {"type": "python", "entry_points": ["a-b = m:main"]}}
    paths = [listed("bin/a"), listed("lib/l.so", "softlink"), listed("d", "directory")]
    folder = unpacked(tmp_path, *paths, link=points)
    (folder / "lib").mkdir()
    (folder / "lib/l.so").symlink_to("l.so.1")
    conda_child.check_package(folder)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "", ".", "a/..", "a\n=== b"]
)
def test_paths_that_lead_out(tmp_path: Path, path: str) -> None:
    folder = unpacked(tmp_path, listed(path))
    with pytest.raises(conda_child.Untrusted, match="has the path"):
        conda_child.check_package(folder)


def test_a_file_behind_a_link(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, listed("etc/passwd"))
    (folder / "etc").symlink_to("/etc")
    with pytest.raises(conda_child.Untrusted, match="behind a link"):
        conda_child.check_package(folder)


def test_a_link_that_is_called_a_file(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, listed("secret"))
    (folder / "secret").symlink_to("/etc/passwd")
    with pytest.raises(conda_child.Untrusted, match="calls a file"):
        conda_child.check_package(folder)


@pytest.mark.parametrize("point", ["../../x = a:b", "/x = a:b", ".. = a:b", "= a:b"])
def test_entry_points_that_lead_out(tmp_path: Path, point: str) -> None:
    told = {"noarch": {"type": "python", "entry_points": [point]}}
    folder = unpacked(tmp_path, link=told)
    with pytest.raises(conda_child.Untrusted, match="entry point"):
        conda_child.check_package(folder)


def test_packages_of_old_list_their_files_in_a_text(tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    (folder / "info/paths.json").unlink()
    (folder / "info/files").write_text("bin/a\n../out\n")
    with pytest.raises(conda_child.Untrusted):
        conda_child.check_package(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"build": "../../x"},
        {"version": "1/../../x"},
        {"file_name": "../x.conda"},
        {"python_site_packages_path": "../../home"},
        {"python_site_packages_path": "/etc"},
        {"url": "file:///etc/passwd"},
        {"url": "ftp://h/x.conda"},
    ],
)
def test_records_that_lead_out(changes: dict) -> None:
    fields = {
        "name": SimpleNamespace(normalized="x"),
        "version": "1",
        "build": "0",
        "file_name": "x-1-0.conda",
        "url": "file:///data/c/noarch/x-1-0.conda",
        "python_site_packages_path": None,
    }
    channels = ["file:///data/c"]
    conda_child._check_record(SimpleNamespace(**fields), channels)
    with pytest.raises(conda_child.Untrusted):
        conda_child._check_record(SimpleNamespace(**{**fields, **changes}), channels)
