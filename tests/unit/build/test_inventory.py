"""What an image says of itself, believed only as far as its form goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build import inventory
from globus_compute_apptainer.build.inventory import (
    Inventory,
    Package,
    from_json,
    parse,
    to_json,
)


def look(
    python: Path | str | None, tmp_path: Path, *, home: Path | None = None
) -> Inventory:
    """Run the programs here, as in an image whose first Python is ``python``."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    if python is not None:
        (folder / "python3").symlink_to(python)
    for tool in ("uname", "getconf", "ldd"):
        found = Path("/usr/bin") / tool
        if found.exists() and not (folder / tool).exists():
            (folder / tool).symlink_to(found)
    program = [inventory._SHELL, "sh", inventory._PYTHON, str(home or tmp_path / "no")]
    said = subprocess.run(
        ["/bin/sh", "-c", *program],
        env={"PATH": str(folder)},
        cwd="/",
        capture_output=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    lines = [x for x in said.stdout.decode().splitlines() if x.startswith("@@")]
    found = parse(lines)
    assert found is not None
    return found


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    made = tmp_path / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(made)]
    subprocess.run(command, check=True, timeout=120)
    return made


def install(site: Path, name: str, version: str = "1.0", *needs: str) -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    return info


def site_of(venv: Path) -> Path:
    return next(venv.glob("lib/python3*/site-packages"))


def test_a_virtual_environment(venv, tmp_path):
    needs = ["six>=1", "x ; extra == 'y'"]
    install(site_of(venv), "Some_Thing", "2.0", *needs)
    # As `python3 -m venv` puts it on PATH: by its own name, not through another link.
    found = look(venv / "bin" / "python3", tmp_path)
    python = found.python
    assert python is not None
    assert python.executable == str(tmp_path / "bin" / "python3")
    assert python.minor == "{}.{}".format(*sys.version_info)
    assert python.implementation == "cpython"
    assert found.machine == os.uname().machine
    assert (found.libc in {"glibc", "musl"}) and found.libc_version
    assert found.path == str(tmp_path / "bin")


def test_the_packages_are_those_that_python_sees(venv, tmp_path):
    install(site_of(venv), "Some_Thing", "2.0", "six>=1", "x ; extra == 'y'")
    said = subprocess.run(
        [venv / "bin/python3", "-c", inventory._PYTHON, str(venv / "bin/python3")],
        capture_output=True,
        timeout=60,
        check=True,
        env={},
    )
    lines = [x for x in said.stdout.decode().splitlines() if x.startswith("@@")]
    python = parse([*lines, "@@end "]).python
    assert python.packages == (
        Package("some-thing", "2.0", ("six>=1", "x ; extra == 'y'")),
    )
    assert python.prefix == str(venv)
    assert python.base_prefix == sys.base_prefix
    assert python.site_packages == (str(site_of(venv)),)
    assert python.base_executable not in {python.executable, ""}
    assert Path(python.base_executable).exists()


def test_of_two_the_first_on_the_path_counts(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    install(first, "numpy", "2.0")
    install(second, "NumPy", "1.0", "old")
    rows = subprocess.run(
        [sys.executable, "-S", "-c", inventory._PYTHON, sys.executable],
        env={"PYTHONPATH": f"{first}:{second}"},
        capture_output=True,
        check=True,
    ).stdout.decode()
    packages = parse([*rows.splitlines(), "@@end "]).python.packages
    assert packages == (Package("numpy", "2.0"),)


def test_broken_metadata_hides_no_other(tmp_path):
    site = tmp_path / "site"
    install(site, "good")
    (site / "empty-1.0.dist-info").mkdir()
    (site / "binary-1.0.dist-info").mkdir()
    (site / "binary-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00 no")
    (site / "noname-1.0.dist-info").mkdir()
    (site / "noname-1.0.dist-info" / "METADATA").write_text("Version: 1.0\n")
    (site / "sitecustomize.py").write_text("print('@@end noise', end='')\n")
    rows = subprocess.run(
        [sys.executable, "-c", inventory._PYTHON, sys.executable],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        check=True,
    ).stdout.decode()
    names = [p.name for p in parse([*rows.splitlines(), "@@end "]).python.packages]
    assert "good" in names
    assert "noname" not in names


def test_without_python(tmp_path):
    found = look(None, tmp_path)
    assert found.python is None
    assert found.has_bash == Path("/bin/bash").exists()


def test_a_python_that_does_not_run(tmp_path):
    assert look("/bin/false", tmp_path).python is None


def test_what_is_ours_already(tmp_path):
    home = tmp_path / "home"
    (home / "env2").mkdir(parents=True)
    (home / "layers").mkdir()
    assert look(None, tmp_path, home=home).ours == ("env2", "layers")


@pytest.mark.parametrize(
    ("said", "musl", "libc"),
    [
        ("glibc 2.36", "", ("glibc", "2.36")),
        ("ldd (Ubuntu GLIBC 2.35-0ubuntu3.4) 2.35 Copyright", "", ("glibc", "2.35")),
        ("musl libc (x86_64) Version 1.2.4 Dynamic", "x", ("musl", "1.2.4")),
        ("sh: ldd: not found", "x", ("musl", "")),
        ("glibc 2.36", "x", ("glibc", "2.36")),
        ("", "", ("", "")),
    ],
)
def test_the_c_library(said, musl, libc):
    rows = [f"@@libc {said}", *([f"@@musl {musl}"] if musl else []), "@@end "]
    found = parse(rows)
    assert (found.libc, found.libc_version) == libc


def test_half_an_answer_is_none():
    assert parse(["@@path /bin"]) is None


@given(st.lists(st.text().map(lambda text: f"@@{text}")))
def test_any_answer_can_be_read(lines):
    found = parse([*lines, "@@end "])
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


TEXTS = st.text(max_size=20)


@given(
    st.builds(
        Inventory,
        *[TEXTS] * 6,
        st.booleans(),
        st.tuples(TEXTS),
        st.none()
        | st.builds(
            inventory.Python,
            *[TEXTS] * 6,
            st.tuples(TEXTS, TEXTS),
            st.booleans(),
            st.tuples(st.builds(Package, TEXTS, TEXTS, st.tuples(TEXTS))),
        ),
    )
)
def test_json_there_and_back(found):
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


def test_other_json_is_refused():
    good = to_json(parse(["@@end "]))
    for bad in (
        None,
        [],
        {},
        {**good, "more": 1},
        {**good, "os": 1},
        {**good, "ours": [1]},
        {**good, "python": {}},
        {**good, "has_bash": "no"},
    ):
        with pytest.raises(ValueError, match="not an inventory"):
            from_json(bad)
