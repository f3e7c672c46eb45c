"""Lock files of uv and of PEP 751."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from globus_compute_apptainer.client import from_lock
from globus_compute_apptainer.errors import SpecError

REGISTRY = 'source = { registry = "https://pypi.org/simple" }'
UV_LOCK = f"""\
version = 1
revision = 3
requires-python = ">=3.10"

[[package]]
name = "app"
version = "1.0"
source = {{ virtual = "." }}
dependencies = [
    {{ name = "colorama", marker = "sys_platform == 'win32'" }},
    {{ name = "cuda", marker = "platform_machine == 'x86_64'" }},
    {{ name = "numpy", version = "2.2.6", {REGISTRY}, marker = "python_full_version < '3.11'" }},
    {{ name = "numpy", version = "2.4.6", {REGISTRY}, marker = "python_full_version >= '3.11'" }},
    {{ name = "redis" }},
    {{ name = "requests", extra = ["socks"] }},
]

[package.optional-dependencies]
plot = [{{ name = "plotter" }}]

[package.dev-dependencies]
test = [{{ name = "pytest" }}]

[[package]]
name = "async-timeout"
version = "5.0"
{REGISTRY}

[[package]]
name = "colorama"
version = "0.4.6"
{REGISTRY}

[[package]]
name = "cuda"
version = "12.0"
{REGISTRY}

[[package]]
name = "numpy"
version = "2.2.6"
{REGISTRY}

[[package]]
name = "numpy"
version = "2.4.6"
{REGISTRY}

[[package]]
name = "plotter"
version = "1.0"
source = {{ url = "https://h/plotter-1.0.zip" }}

[[package]]
name = "PySocks"
version = "1.7.1"
{REGISTRY}

[[package]]
name = "pytest"
version = "9.0"
source = {{ git = "https://h/pytest.git?rev=main#0123" }}

[[package]]
name = "redis"
version = "7.0"
{REGISTRY}
dependencies = [{{ name = "async-timeout", marker = "python_full_version < '3.11.3'" }}]

[[package]]
name = "requests"
version = "2.33.0"
{REGISTRY}

[package.optional-dependencies]
socks = [{{ name = "PySocks" }}]
"""  # noqa: E501 - as uv writes it

PYLOCK = """\
lock-version = "1.0"
created-by = "us"
requires-python = ">=3.10"
dependency-groups = ["test"]

[[packages]]
name = "colorama"
version = "0.4.6"
marker = "sys_platform == 'win32'"
wheels = [{ name = "colorama-0.4.6-py3-none-any.whl", url = "https://h/c", hashes = {sha256 = "0"}}]

[[packages]]
name = "numpy"
version = "2.4.6"
marker = "python_full_version >= '3.11'"
wheels = [
  { name = "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl", url = "https://h/n", hashes = {sha256 = "0"}},
  { name = "numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.whl", url = "https://h/a", hashes = {sha256 = "0"}},
]

[[packages]]
name = "pytest"
version = "9.0"
marker = "'test' in dependency_groups"
wheels = [{ name = "pytest-9.0-py3-none-any.whl", url = "https://h/p", hashes = {sha256 = "0"}}]

[[packages]]
name = "tool"
archive = { url = "https://h/tool-1.zip", hashes = {sha256 = "0"}}
"""  # noqa: E501


def refused(path, **options) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_lock(path, **options)
    return caught.value


def test_what_the_project_needs_here(write) -> None:
    path = write("uv.lock", UV_LOCK)
    assert from_lock(path, python="3.11") == {
        "python": "3.11",
        "pip": [
            "async-timeout==5.0",
            'cuda==12.0 ; platform_machine == "x86_64"',
            "numpy==2.4.6",
            "pysocks==1.7.1",
            "redis==7.0",
            "requests==2.33.0",
        ],
    }
    older = from_lock(path, python="3.10")["pip"]
    assert "numpy==2.2.6" in older
    assert "numpy==2.4.6" not in older
    assert "async-timeout==5.0" not in from_lock(path, python="3.12")["pip"]


def test_extras_and_groups_are_added(write) -> None:
    path = write("uv.lock", UV_LOCK)
    found = from_lock(path, python="3.12", extras=["plot"])["pip"]
    assert "plotter @ https://h/plotter-1.0.zip" in found
    assert "no 'plots'" in refused(path, extras=["plots"]).message
    error = refused(path, python="3.12", groups=["test"])
    assert "pytest: comes from git https://h/pytest.git" in error.message
    assert from_lock(path, python="3.12", groups=["test"], skip=["pytest"])["pip"]


def test_two_versions_for_micros_of_one_minor_are_refused(write) -> None:
    text = UV_LOCK.replace("< '3.11'", "< '3.11.5'").replace(">= '3.11'", ">= '3.11.5'")
    error = refused(write("uv.lock", text), python="3.11")
    assert "numpy: 2.2.6 or 2.4.6" in error.message


def test_a_lock_of_a_script(write) -> None:
    text = f"""\
version = 1
requires-python = ">=3.9"
[manifest]
requirements = [{{ name = "six", specifier = ">=1" }}]
[[package]]
name = "six"
version = "1.17.0"
{REGISTRY}
"""
    found = from_lock(write("work.py.lock", text), python="3.12")
    assert found == {"python": "3.12", "pip": ["six==1.17.0"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("version = 1\n", "version = 2\n"), "format 2"),
        (('{ virtual = "." }', '{ registry = "h" }'), "no project"),
        (
            (
                'name = "redis"\nversion = "7.0"\nsource = { registry',
                "name = 'redis'\nversion='7'\nsource = { editable",
            ),
            "several projects",
        ),
        (('{ name = "redis" }', '{ name = "gone" }'), "locked 0 times"),
        (('{ name = "redis" }', '{ version = "1" }'), "not as uv writes it"),
        (("requires-python", 'conflicts = [["a"]]\nrequires-python'), "conflict"),
    ],
)
def test_what_is_not_sound(write, change, says) -> None:
    path = write("uv.lock", UV_LOCK.replace(*change, 1))
    assert says in refused(path, python="3.11").message


def test_a_standard_lock(write) -> None:
    pytest.importorskip("packaging.pylock")
    path = write("pylock.toml", PYLOCK)
    pins = ["numpy==2.4.6", "tool @ https://h/tool-1.zip"]
    assert from_lock(path, python="3.11") == {"python": "3.11", "pip": pins}
    found = from_lock(path, python="3.11", groups=["test"])["pip"]
    assert found == ["numpy==2.4.6", "pytest==9.0", "tool @ https://h/tool-1.zip"]
    assert from_lock(path, python="3.10")["pip"] == ["tool @ https://h/tool-1.zip"]


def test_a_standard_lock_made_for_another_python(write) -> None:
    pytest.importorskip("packaging.pylock")
    error = refused(write("pylock.work.toml", PYLOCK), python="3.13")
    assert error.code == "source-unreadable"
    assert "numpy" in error.message


def test_other_files_are_not_lock_files(write) -> None:
    assert "neither" in refused(write("poetry.lock", "a = 1")).message
    assert "not TOML" in refused(write("uv.lock", "a")).message


def test_what_uv_itself_writes(write, tmp_path) -> None:
    uv = pytest.importorskip("uv").find_uv_bin()
    shutil.rmtree(tmp_path / "wheels", ignore_errors=True)
    write(
        "pyproject.toml",
        """\
        [project]
        name = "app"
        version = "1.0"
        requires-python = ">=3.10"
        dependencies = ["iniconfig"]
        """,
    )
    for command in (["lock"], ["export", "-o", "pylock.toml"]):
        subprocess.run(
            [uv, *command, "--directory", str(tmp_path)],
            check=True,
            capture_output=True,
        )
    found = from_lock(tmp_path / "uv.lock", python="3.11")
    (pin,) = found["pip"]
    assert pin.startswith("iniconfig==")
    assert from_lock(tmp_path / "pylock.toml", python="3.11") == found
