"""Debian package names."""

import pytest

from globus_compute_apptainer.spec.apt import package
from globus_compute_apptainer.spec.refusal import Refusal


@pytest.mark.parametrize(
    "entry",
    [
        "git",
        "g++",
        "libstdc++6",
        "libgomp1:amd64",
        "python3.11-venv",
        "0ad",
        "libc6=2.36-9+deb12u4",
        "vim=2:9.0.1378-2",
        "x2=1~rc1",
        "libc6:arm64=1:2.0",
    ],
)
def test_accepted_as_given(entry):
    assert package(entry) == entry


@pytest.mark.parametrize(
    "entry",
    [
        "-y",
        "--allow-unauthenticated",
        "-o=APT::x",
        "a",
        "",
        "Git",
        "git curl",
        "git;curl",
        "git\n",
        "git$(id)",
        "git/bookworm",
        "python3*",
        "^python",
        "git>=2",
        "git=",
        "git=-1",
        "git=1 2",
        "git=1*",
        "git:",
        "git:-x",
        "git:amd64:x",
        "foo-",
        "foo:amd64-",
        "foo=1-",
        "./local.deb",
        "/tmp/local.deb",
        "gìt",
        "git٣",
        "a" * 500,
    ],
)
def test_refused(entry):
    with pytest.raises(Refusal):
        package(entry)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("Git", "Debian names are lower case"),
        ("git curl", "one package per entry"),
        ("git>=2", "only name=version pins a version"),
    ],
)
def test_hints(entry, hint):
    with pytest.raises(Refusal) as caught:
        package(entry)
    assert caught.value.hint == hint
