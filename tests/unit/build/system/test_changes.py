"""What programs changed in a directory, taken out as an overlay would hold it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.system import changes, sandbox, unpack, upper

STATES = dict[str, tuple[int, str, int]]


def base(folder: Path) -> Path:
    tree = folder / "base"
    for file in ("etc/motd", "etc/apt/sources", "usr/a/b/c", "usr/a/d", "usr/e"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(file)
    os.link(tree / "usr/e", tree / "usr/same")
    (tree / "lib").symlink_to("usr")
    return tree


def states(tree: Path) -> STATES:
    """Path → mode, what is in it, time."""
    found = {}
    for path in tree.rglob("*"):
        status, content = path.lstat(), ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_text()
        found[str(path.relative_to(tree))] = status.st_mode, content, status.st_mtime_ns
    return found


class Sandbox:
    """A directory, a copy of it as it was, and what is taken of it."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.upper = base(folder), folder / "upper"
        self.copy, self.before = folder / "copy", folder / "before.json"
        shutil.copytree(self.tree, self.copy, symlinks=True)
        self.before.write_text(json.dumps(sandbox.names(self.tree)))
        sandbox.wait_for_time(self.before)

    def found(self, *drop: str) -> changes.Changes:
        names, since = json.loads(self.before.read_text()), self.before.stat()
        return changes.changes(self.tree, names, since.st_ctime_ns, frozenset(drop))

    def take(self) -> Path:
        changes.move(self.tree, self.upper, self.found())
        return self.upper

    def taken(self) -> set[str]:
        return {str(path.relative_to(self.upper)) for path in self.take().rglob("*")}


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_nothing_has_changed(box: Sandbox):
    (box.tree / "etc/motd").read_text()
    assert box.taken() == set()


def test_new_and_changed_files_are_taken_with_the_directories_they_are_in(box: Sandbox):
    (box.tree / "etc/motd").write_text("new")
    (box.tree / "new/er").mkdir(parents=True)
    (box.tree / "new/er/est").symlink_to("nowhere")
    assert box.taken() == {"etc", "etc/motd", "new", "new/er", "new/er/est"}


def test_a_change_with_the_old_time_and_size_is_one(box: Sandbox):
    path, old = box.tree / "etc/motd", (box.tree / "etc/motd").stat()
    path.write_text("etc/MOTD")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert box.taken() == {"etc", "etc/motd"}


def test_another_mode_is_a_change_of_files_and_directories(box: Sandbox):
    (box.tree / "etc/motd").chmod(0o600)
    (box.tree / "usr/a/b").chmod(0o711)
    assert box.taken() == {"etc", "etc/motd", "usr", "usr/a", "usr/a/b"}
    assert stat.S_IMODE((box.upper / "usr/a/b").stat().st_mode) == 0o711


def test_what_is_gone_is_whited_out(box: Sandbox):
    (box.tree / "etc/motd").unlink()
    shutil.rmtree(box.tree / "usr/a")
    assert box.taken() == {"etc", "etc/motd", "usr", "usr/a"}
    assert unpack.is_whiteout((box.upper / "etc/motd").lstat())
    assert unpack.is_whiteout((box.upper / "usr/a").lstat())


def test_a_directory_made_anew_hides_what_was_there(box: Sandbox):
    shutil.rmtree(box.tree / "usr/a")
    (box.tree / "usr/a/b").mkdir(parents=True)
    assert box.taken() == {"usr", "usr/a", "usr/a/b", "usr/a/b/c", "usr/a/d"}
    assert unpack.is_whiteout((box.upper / "usr/a/b/c").lstat())


def test_what_a_renamed_directory_brought_is_taken_although_it_was_not_touched(
    box: Sandbox,
):
    (box.tree / "usr/a").rename(box.tree / "moved")
    assert {"moved/b/c", "moved/d", "usr/a"} <= box.taken()
    assert (box.upper / "moved/b/c").read_text() == "usr/a/b/c"


def test_two_directories_that_changed_places_are_taken_both(box: Sandbox):
    (box.tree / "usr/a").rename(box.tree / "x")
    (box.tree / "etc").rename(box.tree / "usr/a")
    (box.tree / "x").rename(box.tree / "etc")
    assert {"etc/b/c", "etc/d", "usr/a/motd", "usr/a/apt/sources"} <= box.taken()


def test_links_to_one_file_stay_links_to_one_file(box: Sandbox):
    (box.tree / "usr/same").write_text("new")
    assert box.taken() == {"usr", "usr/e", "usr/same"}
    assert (box.upper / "usr/e").samefile(box.upper / "usr/same")


def test_what_is_ours_is_neither_taken_nor_whited_out(box: Sandbox):
    (box.tree / "lib").unlink()
    (box.tree / "etc/motd").touch()
    found = box.found("etc", "lib")
    assert (found.files, found.gone) == ([], ["lib"])


def test_a_layer_needs_no_marks_that_only_this_machine_understands(box: Sandbox):
    shutil.rmtree(box.tree / "usr/a")
    (box.tree / "usr/a").mkdir()
    assert upper.unsuitable(box.take(), [["false"]]) == ""


def test_where_nothing_can_be_noted_as_gone_there_is_no_layer(box, monkeypatch):
    """As on Linux before 5.8, whose user namespaces may not make the device."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (box.tree / "etc/motd").unlink()
    answer = box.upper.with_name("answer.json")
    order = {
        "tree": str(box.tree),
        "before": str(box.before),
        "upper": str(box.upper),
        "answer": str(answer),
        "drop": [],
        "then": "/no/such/program",
    }
    told = box.upper.with_name("order.json")
    told.write_text(json.dumps(order))
    monkeypatch.setattr(os, "mknod", refused)
    assert changes.main(str(told)) == 0
    assert json.loads(answer.read_text()) == {
        "reason": "this machine cannot note in a layer that /etc/motd is gone"
    }


PLACES = st.sampled_from(
    "etc etc/motd etc/apt usr usr/a usr/a/b usr/a/d usr/e usr/same lib "
    "new usr/new new/new".split()
)
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "remove", "folder", "rename", "link", "symlink", "chmod"]
        ),
        PLACES,
        PLACES,
    ),
    max_size=8,
)


def do(tree: Path, deed: str, first: str, second: str) -> None:
    one, other = tree / first, tree / second
    if deed == "write":
        one.write_text(f"{first} by {second}")
    elif deed == "remove":
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    elif deed == "folder":
        one.mkdir()
    elif deed == "rename":
        one.rename(other)
    elif deed == "link":
        os.link(one, other, follow_symlinks=False)
    elif deed == "symlink":
        one.symlink_to(second)
    else:
        one.chmod(0o700)


@given(DEEDS)
def test_laid_over_what_was_there_they_are_what_is_there(deeds):
    with tempfile.TemporaryDirectory() as folder:
        box = Sandbox(Path(folder))
        for deed in deeds:
            with suppress(OSError):
                do(box.tree, *deed)
        wanted = states(box.tree)
        unpack.merge(box.take(), box.copy)
        assert states(box.copy) == wanted
