"""Calling a real Apptainer: the environment and the binds arrive as they were given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer, bind, run

pytestmark = pytest.mark.apptainer

VALUES = {
    "COMMA": "a,b=c,,d",
    "QUOTES": 'it\'s "quoted" `id` \\ \\n',
    "DOLLAR": "$HOME ${X:-y} $(id) $$",
    "LINES": "one\ntwo\n\n three\n",
    "RETURN": "a\rb\r",
    "TAB": "\ta\t",
    "EMPTY": "",
    "EQUALS": "=a=",
    "BLANKS": "  a  b  ",
    "UMLAUT": "grüße ☃ 🚀",
    "PERCENT": "%s %d %%",
    "BANG": "!! !x",
    "HASH": "#a",
    "ESCAPE": "\x1b[31m\x07",
    "LONG": "x" * 50000,
    "PYTHONPATH": "/a:/b",
}


def inside(
    apptainer: Apptainer, sif: Path, environ: dict[str, str], program: str, **options
):
    lines: list[str] = []
    argv = apptainer.exec_argv(
        sif, ["python3", "-c", program], options=["--no-home"], cwd="/", **options
    )
    ended = run(argv, env=environ, timeout=60, on_line=lines.append)
    assert ended.ok, lines
    return json.loads(lines[-1])


@pytest.mark.parametrize("name", VALUES)
def test_every_value_arrives_byte_for_byte(apptainer, python_sif, name):
    environ = apptainer.environment(inside={name: VALUES[name]})
    program = (
        f"import os, json; value = os.environb[b'{name}']\n"
        "print(json.dumps([len(value), value.decode()[-1000:]]))"
    )
    found = inside(apptainer, python_sif, environ, program)
    assert found == [len(VALUES[name].encode()), VALUES[name][-1000:]]


def test_the_one_exception(apptainer, python_sif):
    environ = apptainer.environment(inside={"A": "one\r\ntwo"})
    program = "import os, json; print(json.dumps(os.environ['A']))"
    assert inside(apptainer, python_sif, environ, program) == "one\ntwo"


def test_the_environment_is_clean(apptainer, python_sif, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("APPTAINERENV_SECRET", "x")
    monkeypatch.setenv("SINGULARITYENV_SECRET", "x")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    environ = apptainer.environment()
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    found = inside(apptainer, python_sif, environ, program)
    assert "SECRET" not in found
    assert "/nonexistent" not in found.get("LD_LIBRARY_PATH", "")


def test_path_can_be_set(apptainer, python_sif):
    environ = apptainer.environment(inside={"PATH": "/my/bin:/usr/bin:/bin"})
    program = "import os, json; print(json.dumps(os.environ['PATH']))"
    assert inside(apptainer, python_sif, environ, program).startswith("/my/bin:")


def test_arguments_arrive_as_they_are(apptainer, python_sif):
    words = ["a b", "$HOME", "it's", "", "--nv", "\n", "*"]
    lines: list[str] = []
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    argv = apptainer.exec_argv(python_sif, ["python3", "-c", program, *words])
    run(argv, env=apptainer.environment(), timeout=60, on_line=lines.append)
    assert json.loads(lines[-1]) == words


@pytest.mark.parametrize("name", ["plain", "with space", "co:lon", "com,ma"])
def test_any_directory_can_be_bound(apptainer, python_sif, tmp_path: Path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "x").write_text("here")
    program = (
        "import json\ntry: open('/mnt/x', 'a'); rw = True\nexcept OSError: rw = False\n"
        "print(json.dumps([open('/mnt/x').read(), rw]))"
    )
    for read_only in (False, True):
        found = inside(
            apptainer,
            python_sif,
            apptainer.environment(),
            program,
            binds=[bind(folder, "/mnt", read_only=read_only)],
        )
        assert found == ["here", not read_only]
