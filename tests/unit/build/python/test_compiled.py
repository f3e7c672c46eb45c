"""Whose bytecode this process's Python can make, and which files are whose."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.build.python import compiled
from globus_compute_apptainer.build.python.compiled import Compiled
from unit.build.python.pythons import PYTHON

OURS = replace(
    PYTHON,
    version=platform.python_version(),
    implementation=sys.implementation.name,
)


def test_that_of_images_with_the_same_minor_version(tmp_path: Path):
    minor = "{}.{}".format(*sys.version_info[:2])
    assert Compiled.of(tmp_path, "/env", replace(OURS, version=f"{minor}.99"))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "3.8.1"},
        {"version": "{}.{}.0rc1".format(*sys.version_info[:2])},
        {"version": "{}.{}.0+".format(*sys.version_info[:2])},
        {"implementation": "pypy"},
    ],
)
def test_no_other(tmp_path: Path, changes):
    assert Compiled.of(tmp_path, "/env", replace(OURS, **changes)) is None


def install(site: Path, name: str, *sources: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "WHEEL").touch()
    rows = "".join(f"{source},sha256=abc,1\n" for source in sources)
    (info / "RECORD").write_text(rows + f"{info.name}/RECORD,,\n")


def test_a_wheels_sources_are_what_would_be_compiled(tmp_path: Path):
    names = ("a.py", "a/b.py", "a/c.so", "a/tests/d.py", "../../../bin/e.py", "/f.py")
    install(tmp_path, "one", *names, "a/__pycache__/g.py", '"h, i.py"')
    (wheel,) = compiled.installed(tmp_path)
    assert dict(wheel.sources) == dict.fromkeys(("a.py", "a/b.py", "h, i.py"), "abc")


def test_wheels_that_share_a_file_are_left_alone(tmp_path: Path):
    install(tmp_path, "one", "a.py", "b.py")
    install(tmp_path, "two", "b.py")
    install(tmp_path, "three", "c.py")
    wheels = compiled.installed(tmp_path)
    assert [dict(w.sources) for w in compiled.sound(wheels)] == [{"c.py": "abc"}]


def test_a_wheel_that_was_unpacked_anew_is_another(tmp_path: Path):
    install(tmp_path, "one", "a.py")
    (first,) = compiled.installed(tmp_path)
    os.utime(tmp_path / "one-1.0.dist-info/WHEEL", (1, 1))
    (second,) = compiled.installed(tmp_path)
    assert first.key != second.key


def test_nothing_there_is_nothing_laid(tmp_path: Path):
    known = Compiled.of(tmp_path / "packages", "/env", OURS)
    site = tmp_path / "env/lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    install(site, "one", "a.py")
    assert known is not None
    assert known.lay(tmp_path / "env") is False
    assert sorted(path.name for path in site.iterdir()) == ["one-1.0.dist-info"]
