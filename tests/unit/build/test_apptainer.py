"""How Apptainer is found and called; the program is a stand-in, never the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.apptainer import (
    Apptainer,
    Mode,
    bind,
    choose_mode,
    parse_version,
)
from globus_compute_apptainer.errors import HostError

ALL = (1 << 41) - 1
HERE = Apptainer("/usr/bin/apptainer", "1.4.5", ("--userns",), ("--fakeroot",))


@pytest.fixture
def program(tmp_path: Path):
    def make(script: str) -> str:
        path = tmp_path / "apptainer"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("uid", "capabilities", "mode"),
    [
        (0, ALL, Mode()),
        (0, ALL | 1 << 63, Mode()),
        (0, ALL & ~(1 << 24), Mode(("--userns",), ("--fakeroot",))),
        (0, 0, Mode(("--userns",), ("--fakeroot",))),
        (1000, 0, Mode((), ("--fakeroot",))),
        (1000, ALL, Mode((), ("--fakeroot",))),
    ],
)
def test_mode(uid: int, capabilities: int, mode: Mode):
    assert choose_mode(uid, capabilities, 40) == mode


def test_find_takes_what_it_is_given(program):
    path = program("echo apptainer version 1.4.5")
    found = Apptainer.find(path)
    assert (found.path, found.version) == (path, "1.4.5")


def test_find_looks_in_path(program, monkeypatch: pytest.MonkeyPatch):
    path = program("echo apptainer version 1.3.6-1.el9")
    monkeypatch.setenv("PATH", str(Path(path).parent))
    assert Apptainer.find() == Apptainer.find(path)


@pytest.mark.parametrize("answer", ["1.1.0", "1.10.2", "2.0.0-rc.1"])
def test_versions_that_will_do(answer: str):
    assert parse_version("x", f"apptainer version {answer}\n") == answer


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo apptainer version 1.0.3", "apptainer-too-old"),
        ("echo singularity-ce version 4.2.1", "apptainer-too-old"),
        ("echo", "apptainer-too-old"),
        ("echo broken >&2; exit 1", "apptainer-broken"),
        ("kill -9 $$", "apptainer-broken"),
    ],
)
def test_what_cannot_be_used_is_refused(program, script: str, code: str):
    with pytest.raises(HostError) as caught:
        Apptainer.find(program(script))
    assert caught.value.code == code


def test_it_can_be_located_without_being_run(program, tmp_path: Path):
    ran = tmp_path / "ran"
    path = program(f"touch {ran}; echo apptainer version 1.3.6")
    located = Apptainer.located(path)
    assert not ran.exists()
    assert located.version == ""
    assert replace(located, version="1.3.6") == Apptainer.find(path)
    assert ran.exists()


@pytest.mark.parametrize("look", [Apptainer.find, Apptainer.located])
def test_missing_is_told_with_a_hint(look):
    with pytest.raises(HostError) as caught:
        look("/nonexistent/apptainer")
    assert caught.value.code == "apptainer-missing"
    assert "containers" in caught.value.hint


def test_exec_is_always_clean_and_the_command_comes_last():
    argv = HERE.exec_argv(
        Path("/i.sif"),
        ["sh", "-c", "--nv"],
        binds=["/a:/b:ro", "/c"],
        gpu="nvidia",
        options=["--no-home"],
        cwd="/",
    )
    assert argv == [
        *("/usr/bin/apptainer", "exec", "--userns", "--cleanenv", "--no-eval"),
        *("--bind", "/a:/b:ro", "--bind", "/c", "--nv", "--pwd", "/", "--no-home"),
        *("/i.sif", "sh", "-c", "--nv"),
    ]


def test_build_names_target_then_definition():
    argv = HERE.build_argv(Path("/d.def"), Path("/t.sif"), binds=["/a"], options=["-x"])
    assert argv == [
        *("/usr/bin/apptainer", "build", "--fakeroot", "--bind", "/a", "-x"),
        *("/t.sif", "/d.def"),
    ]


def test_what_would_change_apptainer_or_leak_inside_is_scrubbed():
    base = {
        "APPTAINER_BIND": "/etc",
        "APPTAINERENV_X": "1",
        "SINGULARITYENV_X": "1",
        "LD_LIBRARY_PATH": "/x",
        "PYTHONPATH": "/x",
        "VIRTUAL_ENV": "/x",
        "DBUS_SESSION_BUS_ADDRESS": "x",
        "BASH_FUNC_f%%": "() { :; }",
        "HOME": "/home/u",
        "https_proxy": "http://proxy:3128",
    }
    assert HERE.environment(base) == {
        "HOME": "/home/u",
        "https_proxy": "http://proxy:3128",
    }
    extra = HERE.environment(base, APPTAINER_TMPDIR="/t")
    assert extra["APPTAINER_TMPDIR"] == "/t"


def test_environment_defaults_to_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOMETHING", "here")
    monkeypatch.setenv("APPTAINER_NV", "1")
    found = HERE.environment()
    assert found["SOMETHING"] == "here"
    assert "APPTAINER_NV" not in found


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_values_inside_are_passed_as_they_are(value: str):
    assert HERE.environment({}, inside={"A": value}) == {"APPTAINERENV_A": value}


@pytest.mark.parametrize("name", ["", "A B", "1A", "A-B", "A;touch x", "A\n", "Ä"])
def test_names_that_a_shell_could_not_export_are_refused(name: str):
    with pytest.raises(ValueError, match="environment variable"):
        HERE.environment({}, inside={name: "x"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("/a",), "/a:/a"),
        (("/a", "/b"), "/a:/b"),
        (("/a:b,c", "/d"), r"/a\:b\,c:/d"),
    ],
)
def test_bind(arguments: tuple[str, ...], expected: str):
    assert bind(*arguments) == expected


def test_bind_read_only():
    assert bind(Path("/a"), "/b", read_only=True) == "/a:/b:ro"
