"""apt's lists from one build to the next: as they were, and nothing else."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.system import lists
from globus_compute_apptainer.build.system.lists import Lists, kept_lists
from globus_compute_apptainer.spec.model import ImageSpec

INVENTORY = Inventory("", "debian", "glibc", "2.36", "x86_64", "/bin", has_bash=True)


def below(digit: str = "0") -> Below:
    return Below("sha256:" + digit * 64, Path("/base.sif"), INVENTORY)


def left(apt: Path, text: str = "Package: git\n", when: int = 1_700_000_000) -> Path:
    """What a build's apt leaves behind."""
    for folder in ("lists/partial", "cache/archives"):
        (apt / folder).mkdir(parents=True)
    for name in ("lists/x_InRelease", "lists/x_Packages", "cache/srcpkgcache.bin"):
        (apt / name).write_text(text)
        os.utime(apt / name, (when, when))
    for name in ("lists/lock", "lists/partial/y", "cache/pkgcache.bin"):
        (apt / name).touch()
    return apt


@pytest.fixture
def kept(tmp_path: Path) -> Lists:
    return Lists(tmp_path / "packages/apt/base.tar")


def test_without_any_nothing_is_laid(kept: Lists, tmp_path: Path):
    assert kept.lay(tmp_path / "apt") == {}
    assert not (tmp_path / "apt").exists()


def test_what_was_left_is_there_again_with_its_times(kept: Lists, tmp_path: Path):
    kept.keep(left(tmp_path / "one"), {})
    had = kept.lay(tmp_path / "two")
    files = [path for path in (tmp_path / "two").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "two")) for path in files} == set(had)
    assert sorted(had) == [
        "cache/srcpkgcache.bin",
        "lists/x_InRelease",
        "lists/x_Packages",
    ]
    for path in files:
        assert path.read_text() == "Package: git\n"
        assert path.stat().st_mtime == 1_700_000_000


def test_what_has_not_changed_is_not_written_again(kept: Lists, tmp_path: Path):
    kept.keep(left(tmp_path / "one"), {})
    before = kept.file.stat().st_ino
    kept.keep(left(tmp_path / "two"), kept.lay(tmp_path / "three"))
    assert kept.file.stat().st_ino == before


def test_newer_lists_take_the_place_of_older_ones(kept: Lists, tmp_path: Path):
    kept.keep(left(tmp_path / "one"), {})
    had = kept.lay(tmp_path / "two")
    kept.keep(left(tmp_path / "three", "newer", 1_800_000_000), had)
    kept.lay(tmp_path / "four")
    assert (tmp_path / "four/lists/x_Packages").read_text() == "newer"
    assert [path.name for path in kept.file.parent.iterdir()] == ["base.tar"]


def test_a_broken_file_is_removed(kept: Lists, tmp_path: Path):
    kept.file.parent.mkdir(parents=True)
    kept.file.write_bytes(b"\0" * 100 + b"x" * 2000)
    assert kept.lay(tmp_path / "apt") == {}
    assert not kept.file.exists()


def test_a_file_that_ends_too_early_is_removed(kept: Lists, tmp_path: Path):
    kept.keep(left(tmp_path / "one", "x" * 100_000), {})
    with kept.file.open("r+b") as file:
        file.truncate(150_000)
    assert kept.lay(tmp_path / "two") == {}
    assert not (tmp_path / "two").exists()
    assert not kept.file.exists()


@pytest.mark.parametrize("name", ["../x", "lists/../../x", "/x", "other/x", "lists/"])
def test_other_names_are_not_taken_out(kept: Lists, tmp_path: Path, name: str):
    kept.file.parent.mkdir(parents=True)
    with tarfile.open(kept.file, "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    assert kept.lay(tmp_path / "inner/apt") == {}
    assert not list(tmp_path.rglob("x"))
    assert not kept.file.exists()


def test_links_that_a_build_leaves_are_not_followed(kept: Lists, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    apt = left(tmp_path / "one")
    (apt / "lists/link").symlink_to(tmp_path / "secret")
    os.mkfifo(apt / "lists/pipe")
    kept.keep(apt, {})
    assert b"secret" not in kept.file.read_bytes()
    assert set(kept.lay(tmp_path / "two")) == {
        "cache/srcpkgcache.bin",
        "lists/x_InRelease",
        "lists/x_Packages",
    }


def test_too_much_is_not_kept(kept: Lists, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lists, "MOST_BYTES", 10)
    kept.keep(left(tmp_path / "one"), {})
    assert not kept.file.exists()


def test_only_the_bases_used_last_keep_theirs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lists, "MOST_BASES", 2)
    apt = left(tmp_path / "one")
    for number, name in enumerate("abc"):
        kept = Lists(tmp_path / f"apt/{name}.tar")
        kept.keep(apt, {})
        os.utime(kept.file, (number, number))
    Lists(tmp_path / "apt/a.tar").lay(tmp_path / "gone")
    Lists(tmp_path / "apt/d.tar").keep(apt, {})
    assert sorted(path.name for path in (tmp_path / "apt").iterdir()) == [
        "c.tar",
        "d.tar",
    ]


def test_each_base_has_its_own(make_job, tmp_path: Path):
    found = [kept_lists(make_job(), below(digit), tmp_path) for digit in "001"]
    assert found[0] == found[1] != found[2]


def test_who_sets_variables_in_a_build_gets_none(make_job, tmp_path: Path):
    image = ImageSpec("x", "docker", build_env=(("PERL5OPT", "-e1"),))
    assert kept_lists(make_job(image), below(), tmp_path) is None


def test_a_fresh_build_gets_none(make_job, tmp_path: Path):
    assert kept_lists(make_job(fresh=True), below(), tmp_path) is None
