"""Files and directories that specs are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.cli import origins
from globus_compute_apptainer.cli.origins import Choices
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import model

LOCK = """\
version = 1
requires-python = ">=3.10"
[[package]]
name = "app"
source = { virtual = "." }
dependencies = [{ name = "six" }]
[[package]]
name = "six"
version = "1.17.0"
source = { registry = "https://pypi.org/simple" }
"""
SCRIPT = '# /// script\n# dependencies = ["six"]\n# ///\n'
PROJECT = '[project]\nname = "a"\ndependencies = ["six"]\n[tool.uv]\nindex = [{}]\n'


def made(folder: Path, name: str, text: str, **choices) -> dict:
    (folder / name).write_text(text)
    assert origins.is_known(folder / name)
    return origins.spec(folder / name, Choices(python="3.12", **choices))


@pytest.mark.parametrize(
    ("name", "text", "skip"),
    [
        ("requirements.txt", "six", ()),
        ("requirements-dev.txt", "six\nrich", ("rich",)),
        ("dev-requirements.txt", "six", ()),
        ("pyproject.toml", PROJECT, ("tool.uv.index",)),
        ("work.py", SCRIPT, ()),
    ],
)
def test_requirements_projects_and_scripts(tmp_path, name, text, skip) -> None:
    expected = {"python": "3.12", "pip": ["six"]}
    assert made(tmp_path, name, text, skip=skip) == expected


@pytest.mark.parametrize("name", ["uv.lock", "work.py.lock"])
def test_locks(tmp_path, name: str) -> None:
    assert made(tmp_path, name, LOCK)["pip"] == ["six==1.17.0"]


def test_a_conda_environment(tmp_path) -> None:
    text = "channels: [conda-forge]\ndependencies: [zlib]\n"
    found = made(tmp_path, "environment.yml", text)
    assert found == {"python": "3.12", "conda": text}
    assert model.parse(found)


@pytest.mark.parametrize("name", ["spec.yaml", "spec.json", "poetry.lock", "x.toml"])
def test_other_names_are_specs_or_nothing(tmp_path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert not origins.is_known(tmp_path / name)
    with pytest.raises(SpecError) as caught:
        origins.spec(tmp_path / name)
    assert caught.value.code == "spec-unreadable"


def folder(tmp_path: Path, **files: str) -> Path:
    root = tmp_path / "repo"
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_directory_as_repo2docker_reads_it(tmp_path) -> None:
    root = folder(
        tmp_path,
        requirements_txt="rich",
        binder__requirements_txt="six",
        binder__apt_txt="git",
        binder__postBuild="true",
    )
    found = origins.spec(root)
    assert found == {
        "files": {"requirements.txt": "six", "apt.txt": "git", "postBuild": "true"}
    }
    spec = model.parse(found)
    assert (spec.pip, spec.apt) == (("six",), ("git",))


def test_included_requirements_are_read_here(tmp_path) -> None:
    root = folder(tmp_path, requirements_txt="-r more.txt\nsix", more_txt="rich")
    assert origins.spec(root) == {"pip": ["rich", "six"]}


def test_a_project_to_be_installed_needs_its_files(tmp_path) -> None:
    project = '[build-system]\nrequires = []\n[project]\nname = "a"\n'
    root = folder(tmp_path, pyproject_toml=project)
    with pytest.raises(SpecError) as caught:
        origins.spec(root)
    assert caught.value.code == "source-unsupported"
    assert "payload_url" in caught.value.hint


def test_a_directory_with_what_repo2docker_does_not_read(tmp_path) -> None:
    root = folder(tmp_path, pyproject_toml=PROJECT, README_md="hello")
    with pytest.raises(SpecError) as caught:
        origins.spec(root)
    assert caught.value.hint == f"gc-apptainer build {root}/pyproject.toml"


def test_a_directory_with_nothing_and_one_with_a_dockerfile(tmp_path) -> None:
    root = folder(tmp_path, README_md="hello")
    with pytest.raises(SpecError, match="none of the files"):
        origins.spec(root)
    (root / "Dockerfile").write_text("FROM x")
    with pytest.raises(SpecError, match="Dockerfile"):
        origins.spec(root)


def test_a_file_that_is_no_text(tmp_path) -> None:
    root = folder(tmp_path, apt_txt="")
    (root / "apt.txt").write_bytes(b"\xff")
    with pytest.raises(SpecError, match="UTF-8"):
        origins.spec(root)
