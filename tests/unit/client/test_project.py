"""Dependencies of a project."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.client import from_pyproject
from globus_compute_apptainer.errors import SpecError

TEXT = """\
    [project]
    name = "mine"
    version = "1"
    requires-python = ">=3.10"
    dependencies = ["six"]
    [project.optional-dependencies]
    plot = ["matplotlib"]
    [dependency-groups]
    all = [{include-group = "test"}, "ruff"]
    test = ["pytest"]
    round = [{include-group = "round"}]
    odd = [3]
    """


def test_dependencies_extras_and_groups(write) -> None:
    path = write("pyproject.toml", TEXT)
    assert from_pyproject(path, python="3.12") == {"python": "3.12", "pip": ["six"]}
    found = from_pyproject(path, extras=["plot"], groups=["all"])
    assert found["pip"] == ["six", "matplotlib", "pytest", "ruff"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"extras": ["plots"]}, "no 'plots'"),
        ({"groups": ["none"]}, "no 'none'"),
        ({"groups": ["round"]}, "includes itself"),
        ({"groups": ["odd"]}, "PEP 735"),
    ],
)
def test_what_is_not_in_it(write, options, says) -> None:
    with pytest.raises(SpecError) as caught:
        from_pyproject(write("pyproject.toml", TEXT), **options)
    assert says in caught.value.message


def test_dynamic_dependencies_and_poetry_are_refused(write) -> None:
    path = write("pyproject.toml", '[project]\nname="a"\ndynamic=["dependencies"]')
    with pytest.raises(SpecError) as caught:
        from_pyproject(path)
    assert "dynamic" in caught.value.message
    path = write("pyproject.toml", '[tool.poetry.dependencies]\nsix = "*"')
    with pytest.raises(SpecError) as caught:
        from_pyproject(path)
    assert "poetry export" in caught.value.hint


def test_sources_of_uv_are_seen(write) -> None:
    path = write(
        "pyproject.toml",
        """\
        [project]
        name = "a"
        dependencies = ["lib"]
        [tool.uv.sources]
        lib = { workspace = true }
        """,
    )
    with pytest.raises(SpecError) as caught:
        from_pyproject(path)
    assert "tool.uv.sources.lib (workspace)" in caught.value.message
