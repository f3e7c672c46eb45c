"""What an image answers; the real programs run here, on this machine's Python."""

from __future__ import annotations

import subprocess
import sys

from globus_compute_apptainer.build import probe
from globus_compute_apptainer.build.probe import Probe, parse


def answers(path: str, tmp_path) -> list[str]:
    argv = ["/bin/sh", "-c", probe._SHELL, "sh", probe._PYTHON]
    ran = subprocess.run(
        argv,
        env={"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def test_with_a_python(tmp_path):
    (tmp_path / "python3").symlink_to(sys.executable)
    found = parse(answers(f"{tmp_path}:/usr/bin:/bin", tmp_path))
    assert found is not None
    assert found.python == f"{tmp_path}/python3"
    assert found.python_version == ".".join(map(str, sys.version_info[:3]))
    assert found.libc.startswith(("glibc", "musl"))
    assert found.os
    assert list(found.packages) == sorted(found.packages)


def test_without_a_python(tmp_path):
    (tmp_path / "getconf").symlink_to("/usr/bin/getconf")
    found = parse(answers(str(tmp_path), tmp_path))
    assert found is not None
    assert (found.python, found.python_version, found.packages) == (None, None, ())
    assert found.os
    assert found.libc.startswith("glibc")


def test_parse_every_field():
    lines = [
        *("@@python /usr/bin/python3", "@@version 3.11.2", "@@os Debian 12"),
        *("@@libc glibc 2.36", "@@package b==2", "@@package a==1", "@@bash yes"),
    ]
    expected = Probe(
        "/usr/bin/python3", "3.11.2", "Debian 12", "glibc 2.36", ("a==1", "b==2"), True
    )
    assert parse(lines) == expected


def test_an_answer_that_breaks_off_is_none():
    assert parse(["@@python /usr/bin/python3", "@@version 3.11.2"]) is None
    assert parse([]) is None
