"""Layers laid into an unpacked base: as an overlay shows them, and nowhere else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer.build.system import unpack


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "build/root"
    (root / "etc/apt").mkdir(parents=True)
    (root / "etc/motd").write_text("old")
    (root / "etc/apt/sources").write_text("old")
    (root / "lib").symlink_to("usr/lib")
    return root


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    layer = tmp_path / "build/layer"
    (layer / "etc").mkdir(parents=True)
    return layer


def merge(layer: Path, root: Path) -> None:
    unpack.merge(layer, root)


def test_files_are_added_and_replaced(root: Path, layer: Path):
    (layer / "etc/motd").write_text("new")
    (layer / "etc/more").write_text("more")
    (layer / "etc/link").symlink_to("/nowhere")
    (layer / "etc").chmod(0o711)
    merge(layer, root)
    assert (root / "etc/motd").read_text() == "new"
    assert (root / "etc/more").read_text() == "more"
    assert (root / "etc/link").is_symlink()
    assert (root / "etc/apt/sources").read_text() == "old"
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o711


def test_what_a_layer_removed_is_removed(root: Path, layer: Path):
    for name in ("motd", "apt", "never-there"):
        os.mknod(layer / "etc" / name, stat.S_IFCHR, 0)
    merge(layer, root)
    assert list((root / "etc").iterdir()) == []


def test_a_directory_gives_way_to_a_file_and_the_other_way_round(
    root: Path, layer: Path
):
    (layer / "etc/apt").write_text("a file")
    (layer / "etc/motd").mkdir()
    merge(layer, root)
    assert (root / "etc/apt").read_text() == "a file"
    assert (root / "etc/motd").is_dir()


def test_nothing_is_written_through_a_link_of_the_base(
    root: Path, layer: Path, tmp_path: Path
):
    """A base could have made one to a directory of the host."""
    host = tmp_path / "host"
    host.mkdir()
    (root / "payload").symlink_to(host)
    (root / "file").symlink_to(host / "file")
    (layer / "payload").mkdir()
    (layer / "payload/x").touch()
    (layer / "file").touch()
    merge(layer, root)
    assert list(host.iterdir()) == []
    assert not (root / "payload").is_symlink()
    assert (root / "payload/x").exists()
    assert not (root / "file").is_symlink()


def test_layers_are_laid_in_order_from_anywhere_in_a_file(root: Path, tmp_path: Path):
    files = []
    for number in range(2):
        tree, packed = tmp_path / f"tree{number}", tmp_path / f"{number}.sqfs"
        tree.mkdir()
        (tree / "who").write_text(str(number))
        (tree / f"only{number}").touch()
        subprocess.run(["mksquashfs", tree, packed, "-quiet"], check=True, timeout=60)
        files.append(packed)
    files[1].write_bytes(b"\0" * 4096 + files[1].read_bytes())
    listing = tmp_path / "layers.json"
    listing.write_text(json.dumps([[str(files[0]), 0], [str(files[1]), 4096]]))
    assert unpack.main(str(root), str(listing)) == 0
    assert (root / "who").read_text() == "1"
    assert (root / "only0").exists()
    assert (root / "only1").exists()
    assert [path.name for path in root.parent.iterdir()] == ["root"]


def test_a_broken_layer_is_told_and_leaves_nothing(root: Path, tmp_path: Path):
    (tmp_path / "bad.sqfs").write_bytes(b"no squashfs")
    listing = tmp_path / "layers.json"
    listing.write_text(json.dumps([[str(tmp_path / "bad.sqfs"), 0]]))
    with pytest.raises(subprocess.CalledProcessError):
        unpack.main(str(root), str(listing))
    assert [path.name for path in root.parent.iterdir()] == ["root"]
