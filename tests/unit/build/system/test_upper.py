"""What an overlay's upper directory may hold, to become a layer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer.build.system import upper

WHITEOUT = stat.S_IFCHR


def squashed(folder: Path, *files: str) -> list[list[str]]:
    """A file system with these files; returns the commands that list it."""
    tree, packed = folder / "lower", folder / "lower.sqfs"
    for file in files:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).touch()
    tree.mkdir(exist_ok=True)
    subprocess.run(["mksquashfs", tree, packed, "-quiet"], check=True, timeout=60)
    return [["unsquashfs", "-l", str(packed)]]


def opaque(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / ".wh..wh..opq").touch()
    return folder


def reason(tree: Path, below: list[list[str]]) -> str:
    return upper.unsuitable(tree, below)


def test_new_files_and_removed_ones_are_a_layer(tmp_path: Path):
    tree = tmp_path / "upper"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/new").touch()
    os.mknod(tree / "etc/motd", WHITEOUT, 0)
    assert reason(tree, [["false"]]) == ""  # nothing to look up


def test_a_new_directory_is_a_layer(tmp_path: Path):
    below = squashed(tmp_path, "usr/share/old")
    (opaque(tmp_path / "upper/usr/share/x") / "y").touch()
    assert reason(tmp_path / "upper", below) == ""


def test_a_directory_that_hides_what_was_there_is_none(tmp_path: Path):
    below = squashed(tmp_path, "usr/share/x/old", "usr/share/x/both")
    (opaque(tmp_path / "upper/usr/share/x") / "both").touch()
    assert "/usr/share/x was removed and made anew" in reason(tmp_path / "upper", below)


def test_a_directory_that_was_made_anew_and_hides_nothing_is_a_layer(tmp_path: Path):
    below = squashed(tmp_path, "x/old")
    (opaque(tmp_path / "upper/x") / "old").touch()
    assert reason(tmp_path / "upper", below) == ""


def test_the_same_is_seen_in_extended_attributes(tmp_path: Path):
    below = squashed(tmp_path, "x/old")
    (tmp_path / "upper/x").mkdir(parents=True)
    os.setxattr(tmp_path / "upper/x", "user.overlay.opaque", b"y")
    assert "made anew" in reason(tmp_path / "upper", below)


@pytest.mark.parametrize("name", ["overlay.redirect", "overlay.metacopy"])
def test_what_only_one_kernel_understands_is_none(tmp_path: Path, name: str):
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/x").touch()
    os.setxattr(tmp_path / "upper/x", f"user.{name}", b"/y")
    assert "/x was moved" in reason(tmp_path / "upper", [])


def test_removals_that_are_noted_in_names_are_none(tmp_path: Path):
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/.wh.motd").touch()
    assert "/.wh.motd is gone" in reason(tmp_path / "upper", [])


def test_without_an_answer_new_directories_are_none(tmp_path: Path):
    opaque(tmp_path / "upper/x")
    assert "cannot tell" in reason(tmp_path / "upper", [["false"]])


def test_names_of_any_bytes_are_shown(tmp_path: Path):
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / os.fsdecode(b".wh.\xff\n\x1b")).touch()
    assert r".wh.\udcff\n\x1b" in reason(tmp_path / "upper", [])


def order(folder: Path, below: list[list[str]]) -> Path:
    tree, packed = folder / "upper", folder / "layer.sqfs"
    told = {
        "upper": str(tree),
        "below": below,
        "drop": ["ours"],
        "answer": str(folder / "answer"),
        "pack": ["mksquashfs", str(tree), str(packed), "-quiet", "-no-xattrs"],
    }
    (folder / "order").write_text(json.dumps(told))
    return folder / "order"


def test_a_layer_is_packed_without_marks_and_without_what_is_ours(tmp_path: Path):
    tree = tmp_path / "upper"
    (opaque(tree / "new") / "file").touch()
    (tree / "ours/inner").mkdir(parents=True)
    below = squashed(tmp_path, "old")
    assert upper.main(str(order(tmp_path, below))) == 0
    assert json.loads((tmp_path / "answer").read_text()) == {"reason": ""}
    listed = subprocess.run(
        ["unsquashfs", "-l", tmp_path / "layer.sqfs"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.split() == [
        "squashfs-root",
        "squashfs-root/new",
        "squashfs-root/new/file",
    ]


def test_nothing_is_packed_against_a_reason(tmp_path: Path):
    opaque(tmp_path / "upper/x")
    assert upper.main(str(order(tmp_path, squashed(tmp_path, "x/old")))) == 0
    assert json.loads((tmp_path / "answer").read_text())["reason"]
    assert not (tmp_path / "layer.sqfs").exists()


def test_a_failure_to_pack_is_told(tmp_path: Path):
    (tmp_path / "upper").mkdir()
    path = order(tmp_path, [])
    path.write_text(path.read_text().replace('"-quiet"', '"-no-such-option"'))
    assert upper.main(str(path)) != 0


def test_what_is_all_this_users_needs_no_namespace(tmp_path: Path):
    tree = tmp_path / "upper"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").touch()
    (tree / "etc/file").chmod(0o4400)
    (tree / "etc/link").symlink_to("/no/such")
    os.mknod(tree / "etc/gone", WHITEOUT, 0)
    assert upper.is_ours(tree)


@pytest.mark.parametrize("name", ["etc/file", "etc", "."])
def test_what_this_user_could_not_read_needs_one(tmp_path: Path, name: str):
    tree = tmp_path / "upper"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").touch()
    (tree / name).chmod(0)
    try:
        assert not upper.is_ours(tree)
    finally:
        (tree / name).chmod(0o700)
