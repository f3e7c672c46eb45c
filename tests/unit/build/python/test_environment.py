"""What decides the layer of Python packages; no container, no packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from globus_compute_apptainer.build.inventory import Inventory, Python
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.python import environment, inside
from globus_compute_apptainer.build.python.environment import (
    environment_name,
    python_layer,
)
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.store.shelf import Shelf


def python(**changes) -> Python:
    fields = {
        "executable": "/usr/bin/python3",
        "version": "3.11.2",
        "implementation": "cpython",
        "prefix": "/usr",
        "base_prefix": "/usr",
        "base_executable": "/usr/bin/python3",
        "site_packages": (),
        "free_threaded": False,
        "packages": (),
    }
    return Python(**{**fields, **changes})


def below(found: Python | None) -> Below:
    seen = Inventory("", "", "glibc", "2.36", "x86_64", "/bin", True, python=found)
    return Below("sha256:" + "0" * 64, Path("/no/base.sif"), seen)


def error(make_job, tmp_path: Path, found: Python | None, **more) -> BuildError:
    shelf = Shelf(tmp_path / "v2", "layers")
    with pytest.raises(BuildError) as caught:
        python_layer(make_job(), below(found), ["x"], shelf, tmp_path / "p", **more)
    assert caught.value.stage == "pip"
    return caught.value


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((), "env"),
        (("conda", "layers"), "env"),
        (("env", "layers"), "env2"),
        (("env", "env2"), "env3"),
        (("env2",), "env"),
    ],
)
def test_environments_are_never_merged(ours, expected):
    assert environment_name(ours) == expected


def test_no_python(make_job, tmp_path: Path):
    found = error(make_job, tmp_path, None)
    assert found.code == "no-python"
    assert found.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "3.11/../../x"},
        {"version": "3"},
        {"version": ""},
        {"base_prefix": "/usr\nhome = /x"},
        {"base_prefix": "usr"},
        {"base_executable": "python"},
        {"site_packages": ("/a\nimport os",)},
    ],
)
def test_a_python_that_says_strange_things_is_refused(make_job, tmp_path, changes):
    found = error(make_job, tmp_path, python(**changes))
    assert "strange things" in found.message


def test_a_lock_that_is_none(make_job, tmp_path: Path):
    found = error(make_job, tmp_path, python(), locked=["numpy>=2"])
    assert found.code == "lock-invalid"


def test_a_package_cache_that_cannot_be_used(make_job, tmp_path: Path):
    (tmp_path / "p").touch()
    found = error(make_job, tmp_path, python())
    assert found.code == "cache-unusable"
    assert str(tmp_path / "p") in found.message


def test_credentials_do_not_enter_the_lock(make_job):
    from globus_compute_apptainer.build.python.resolution import Pin
    from globus_compute_apptainer.build.site import SiteAccess

    host = {
        "UV_DEFAULT_INDEX": "https://me:secret@h/simple",
        "UV_INDEX": "a=https://h/a /b",
        "UV_FIND_LINKS": "/c,https://u:secret@h/links",
    }
    job = make_job(site=SiteAccess(host=host))
    assert environment._indexes(job) == [
        "https://****@h/simple",
        "a=https://h/a",
        "/b",
        "/c",
        "https://****@h/links",
    ]
    url = "https://me:secret@h/a-1.0-py3-none-any.whl"
    found = environment._package(job, Pin("a", "1.0", (), url))
    assert found["url"] == "https://****@h/a-1.0-py3-none-any.whl"


def test_a_source_tree_is_known_by_names_modes_and_contents(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub/a.py"
    seen = set()

    def look() -> None:
        digest = inside.tree_digest(tmp_path)
        assert digest == inside.tree_digest(tmp_path)
        assert digest not in seen
        seen.add(digest)

    look()
    file.write_text("1")
    look()
    file.write_text("2")
    look()
    file.chmod(0o755)
    look()
    file.rename(tmp_path / "sub/b.py")
    look()
    (tmp_path / "link").symlink_to("/etc")
    look()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_a_build_leaves_is_read_only_if_it_is_a_file(tmp_path: Path, kind: str):
    place = tmp_path / "lock.txt"
    if kind == "link":
        place.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(OSError):
        inside.read_plain(place)


def test_a_plain_file_is_read(tmp_path: Path):
    (tmp_path / "lock.txt").write_text("a==1\n")
    assert inside.read_plain(tmp_path / "lock.txt") == "a==1\n"
