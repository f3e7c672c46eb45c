"""What is found out of the ``mksquashfs`` of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build import squashfs


@pytest.fixture(autouse=True)
def asked_anew():
    squashfs.has_zstd.cache_clear()
    squashfs.version.cache_clear()
    yield
    squashfs.has_zstd.cache_clear()
    squashfs.version.cache_clear()


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "mksquashfs"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_the_real_one_is_known() -> None:
    assert squashfs.has_zstd()
    assert (squashfs.version() or (0, 0)) >= (4, 4)
    assert "zstd" in squashfs.options()


def test_one_without_zstd_packs_as_it_can(tmp_path, monkeypatch) -> None:
    play(tmp_path, monkeypatch, "echo Compressors: >&2; echo '  gzip (default)' >&2")
    assert not squashfs.has_zstd()
    assert "-comp" not in squashfs.options()
    assert squashfs.version() is None


def test_its_help_may_be_split_up(tmp_path, monkeypatch) -> None:
    play(tmp_path, monkeypatch, 'case $1 in -help-all) echo "  zstd";; esac; exit 1')
    assert squashfs.has_zstd()


def test_where_there_is_none_errors_name_it(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(squashfs, "_SBIN", "/nowhere")
    assert squashfs.program() == "mksquashfs"
    assert squashfs.find("mksquashfs") is None
    assert not squashfs.has_zstd()


@pytest.mark.parametrize(
    ("available", "expected"), [(10, "64M"), (2000, "500M"), (64000, "2048M")]
)
def test_it_takes_what_this_process_may_have(monkeypatch, available, expected) -> None:
    monkeypatch.setattr(squashfs, "available_memory", lambda: available * 1024**2)
    monkeypatch.setattr(squashfs, "processors", lambda: 3)
    assert squashfs.limits() == ["-processors", "3", "-mem", expected]
    assert " ".join(squashfs.limits()) in " ".join(squashfs.options())
