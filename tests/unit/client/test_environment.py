"""Environments frozen, with what no index has named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.client import environment, from_environment
from globus_compute_apptainer.client.conda_environment import channel_of
from globus_compute_apptainer.errors import SpecError

SOURCES = Path(environment.__file__).parents[2]


class Packages:
    """A folder like site-packages, the only one on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        origin: dict[str, Any] | None = None,
        installer: str = "uv",
    ) -> None:
        place = self.folder / f"{name}-{version}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (place / "INSTALLER").write_text(f"{installer}\n")
        if origin is not None:
            (place / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch) -> Packages:
    folder = tmp_path / "lib" / "site-packages"
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return Packages(folder)


def refused(**options) -> str:
    with pytest.raises(SpecError) as caught:
        from_environment(**options)
    assert caught.value.code == "source-unsupported"
    return caught.value.message


def test_exact_pins_and_the_minor_version(installed: Packages) -> None:
    installed.add("Some_Thing", "1.2.3")
    installed.add("pip", "25.0")
    installed.add("torch", "2.9.0+cu128")
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert from_environment() == {
        "python": minor,
        "pip": ["some-thing==1.2.3", "torch==2.9.0+cu128"],
    }


def test_what_no_index_has_is_named_all_at_once(installed: Packages) -> None:
    installed.add("fine")
    editable = {"url": "file:///home/me/mine", "dir_info": {"editable": True}}
    installed.add("mine", origin=editable)
    installed.add("folder", origin={"url": "file:///home/me/f", "dir_info": {}})
    git = {"url": "https://u:secret@h/r.git", "vcs_info": {"vcs": "git"}}
    installed.add("cloned", origin=git)
    installed.add("file", origin={"url": "file:///a.whl", "archive_info": {}})
    message = refused()
    assert message.splitlines()[1:] == [
        "    cloned 1.0: installed from git: https://h/r.git",
        "    file 1.0: installed from file:///a.whl",
        "    folder 1.0: installed from file:///home/me/f",
        "    mine 1.0: an editable install of file:///home/me/mine",
    ]
    left = ["Mine", "folder", "cloned", "file"]
    assert from_environment(skip=left)["pip"] == ["fine==1.0"]


def test_an_archive_on_the_web_is_kept(installed: Packages) -> None:
    origin = {"url": "https://h/tool-1.0.zip", "archive_info": {"hash": "sha256=0"}}
    installed.add("tool", origin=origin)
    assert from_environment()["pip"] == ["tool @ https://h/tool-1.0.zip"]


def test_code_that_is_used_in_place_is_named(
    installed: Packages, tmp_path: Path, monkeypatch
) -> None:
    here = tmp_path / "work"
    Packages(here).add("local")
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    assert f"local 1.0: used in place, in {here}" in refused()


def test_the_first_on_the_path_counts(installed: Packages, monkeypatch) -> None:
    installed.add("six", "2.0")
    below = Packages(installed.folder.parents[1] / "dist-packages")
    below.add("six", "1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(below.folder)])
    assert from_environment()["pip"] == ["six==2.0"]


def conda_record(prefix: Path, name: str, **more: str) -> None:
    folder = prefix / "conda-meta"
    folder.mkdir(exist_ok=True)
    (folder / "history").touch()
    record = {
        "name": name,
        "version": "1.0",
        "build": "h0_0",
        "channel": "https://conda.anaconda.org/conda-forge/linux-64",
        **more,
    }
    (folder / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture
def conda(installed: Packages, tmp_path: Path) -> Packages:
    conda_record(tmp_path, "libx")
    conda_record(tmp_path, "numpy", requested_spec="numpy")
    # As conda builds leave it.
    built = {"url": "file:///croot/numpy", "dir_info": {}}
    installed.add("numpy", origin=built, installer="conda")
    installed.add("six", "1.17.0")
    return installed


def test_a_conda_environment(conda: Packages, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    found = from_environment(skip=["nothing"])
    assert found["conda"] == {
        "channels": ["conda-forge"],
        "dependencies": ["libx=1.0=h0_0", "numpy=1.0=h0_0"],
    }
    assert found["pip"] == ["six==1.17.0"]


def test_elsewhere_only_what_was_asked_for(conda: Packages, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert from_environment()["conda"]["dependencies"] == ["numpy=1.0"]


@pytest.mark.parametrize(
    ("url", "channel"),
    [
        ("https://conda.anaconda.org/conda-forge/noarch", "conda-forge"),
        ("https://conda.anaconda.org/a/label/dev/linux-64", "a/label/dev"),
        (
            "https://repo.anaconda.com/pkgs/main/linux-64",
            "https://repo.anaconda.com/pkgs/main",
        ),
        ("https://h/t/secret/mine/linux-aarch64/", "https://h/mine"),
        ("conda-forge", "conda-forge"),
    ],
)
def test_channels_as_people_name_them(url: str, channel: str) -> None:
    assert channel_of(url) == channel


def test_a_real_environment(tmp_path: Path) -> None:
    """A fresh one, with one package from a wheel and one editable."""
    venv = tmp_path / "venv"
    uv = pytest.importorskip("uv").find_uv_bin()
    python = str(venv / "bin/python")
    subprocess.run(
        [uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True
    )
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "pyproject.toml").write_text('[project]\nname="mine"\nversion="0"\n')
    install = [uv, "pip", "install", "-q", "--python", python]
    needed = ["packaging", *(["tomli"] if sys.version_info < (3, 11) else [])]
    subprocess.run([*install, *needed, "iniconfig", "-e", str(mine)], check=True)
    code = f"""
import sys
sys.path.append({str(SOURCES)!r})
from globus_compute_apptainer.client import from_environment
try:
    from_environment()
except Exception as error:
    print(error.message.splitlines()[1].split(":")[0].strip())
print(sorted(line.split("==")[0] for line in from_environment(skip=["mine"])["pip"]))
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    expected = ["mine 0", str(sorted(["iniconfig", *needed]))]
    assert done.stdout.splitlines() == expected, done.stderr
