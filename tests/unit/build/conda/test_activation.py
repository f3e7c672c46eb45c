"""The script that every container start sources: real shells read it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.conda import activation

TEXTS = st.text(
    st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_characters="\r"),
    max_size=30,
)


def environment(text: str, shell: str = "sh") -> dict[str, str]:
    code = f"{text}\nexec env -0"
    argv = [shell, "-c", code]
    env = {"PATH": "/usr/bin:/bin"}
    said = subprocess.run(argv, env=env, capture_output=True, check=True).stdout
    pairs = (entry.partition("=") for entry in said.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs}


@given(TEXTS)
def test_values_arrive_as_they_are(value: str) -> None:
    script = activation.script("/p", "/p/bin", {"VALUE": value})
    assert environment(script)["VALUE"] == value


def test_the_prefix_comes_first() -> None:
    found = environment(activation.script("/p", "/a:/p/bin", {}))
    assert found["PATH"] == "/a:/p/bin:/usr/bin:/bin"
    assert (found["CONDA_PREFIX"], found["CONDA_DEFAULT_ENV"]) == ("/p", "/p")


def test_bash_reads_it_alike() -> None:
    script = activation.script("/p", "/p/bin", {"A": 'it\'s "$B" `c` \\ \n!'})
    assert environment(script, "bash")["A"] == environment(script)["A"]


def test_variables_that_packages_bring_as_files(tmp_path: Path) -> None:
    folder = tmp_path / "etc/conda/env_vars.d"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps({"A": "1", "not a name": "2", "B": 3}))
    (folder / "b.json").write_text("broken")
    (folder / "c.json").write_text("[1]")
    (folder / "d.json").write_text(json.dumps({"A": "later"}))
    found = dict(activation._package_variables(tmp_path))
    assert found == {"A": "later", "B": "3"}


def test_links_to_other_places_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"TOKEN": "s3cret"}))
    tree = tmp_path / "tree"
    folder = tree / "etc/conda/env_vars.d"
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to(secret)
    assert not dict(activation._package_variables(tree))
    folder.joinpath("a.json").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert not dict(activation._package_variables(tree))
