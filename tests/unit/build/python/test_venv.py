"""Virtual environments whose Python is in an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from globus_compute_apptainer.build.inventory import Python
from globus_compute_apptainer.build.python import venv


def python(**changes) -> Python:
    fields = {
        "executable": "/usr/bin/python3",
        "version": "3.13.5",
        "implementation": "cpython",
        "prefix": "/usr",
        "base_prefix": "/usr",
        "base_executable": "/usr/bin/python3",
        "site_packages": (),
        "free_threaded": False,
        "packages": (),
    }
    return Python(**{**fields, **changes})


def settings(env: Path) -> dict[str, str]:
    lines = (env / "pyvenv.cfg").read_text().splitlines()
    return dict(line.split(" = ") for line in lines)


def test_an_environment_of_the_image(tmp_path: Path):
    env = tmp_path / "env"
    venv.lay_image(env, python())
    assert os.readlink(env / "bin/python") == "/usr/bin/python3"
    assert os.readlink(env / "bin/python3.13") == "python"
    assert (env / "lib64/python3.13/site-packages").is_dir()
    found = settings(env)
    assert found["home"] == "/usr/bin"
    assert found["include-system-site-packages"] == "true"
    assert found["version"] == "3.13.5"


def test_a_base_in_an_environment_brings_its_packages(tmp_path: Path):
    inside = python(prefix="/opt/venv", site_packages=("/opt/venv/it's", "/x"))
    venv.lay_image(tmp_path / "env", inside)
    assert settings(tmp_path / "env")["include-system-site-packages"] == "false"
    link = venv.site_packages(tmp_path / "env", "3.13") / venv.BASE_LINK
    assert link.read_text() == (
        'import site; site.addsitedir("/opt/venv/it\'s")\n'
        "import site; site.addsitedir('/x')\n"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "/usr/bin/python3"),
        (
            {"base_prefix": "/opt/py", "base_executable": "/usr/local/bin/python"},
            "/opt/py/bin/python3.13",
        ),
        (
            {"base_prefix": "/opt/py", "base_executable": "/opt/py/bin/python"},
            "/opt/py/bin/python",
        ),
    ],
)
def test_the_interpreter_is_the_real_one(changes, expected):
    assert venv.interpreter(python(**changes)) == expected


def fill(env: Path) -> tuple[Path, Path]:
    """As uv does; the record is shared with a cache."""
    folder = next((env / "lib").glob("python*/site-packages"))
    name = folder.parent.name
    header = env / "include/site" / name / "pkg/a,b.h"
    header.parent.mkdir(parents=True)
    header.touch()
    info = folder / "My.Pkg-1.0.dist-info"
    info.mkdir()
    cached = env.parent / "cached"
    cached.write_text(
        f'"../../../include/site/{name}/pkg/a,b.h",sha256=x,1\npkg.py,sha256=y,2\n'
    )
    os.link(cached, info / "RECORD")
    return info, cached


def test_an_environment_of_the_host_becomes_one_of_the_image(tmp_path: Path):
    env = tmp_path / "env"
    venv.lay_host(env)
    assert settings(env)["relocatable"] == "true"
    info, cached = fill(env)
    before = cached.read_text()
    venv.turn(env, python())
    assert [path.name for path in (env / "lib").iterdir()] == ["python3.13"]
    links = sorted(path.name for path in (env / "bin").iterdir())
    assert links == ["python", "python3", "python3.13"]
    assert os.readlink(env / "bin/python") == "/usr/bin/python3"
    assert "relocatable" not in settings(env)
    record = env / "lib/python3.13/site-packages" / info.name / "RECORD"
    assert record.read_text() == (
        '"../../../include/site/python3.13/pkg/a,b.h",sha256=x,1\npkg.py,sha256=y,2\n'
    )
    assert (env / "include/site/python3.13/pkg/a,b.h").exists()
    assert cached.read_text() == before
    assert venv.installed(env, "3.13") == {"my-pkg": "1.0"}


def test_an_environment_of_the_same_python(tmp_path: Path):
    env = tmp_path / "env"
    venv.lay_host(env)
    name = next((env / "lib").iterdir()).name
    venv.turn(env, python(version=name.removeprefix("python") + ".1"))
    assert (env / "lib" / name / "site-packages").is_dir()


def test_what_wheels_bring_beside_packages_stays(tmp_path: Path):
    """As those of mkl do: libraries in ``lib``."""
    env = tmp_path / "env"
    venv.lay_host(env)
    (env / "lib/libx.so").touch()
    venv.turn(env, python())
    assert sorted(p.name for p in (env / "lib").iterdir()) == ["libx.so", "python3.13"]
    assert settings(env)["home"] == "/usr/bin"
