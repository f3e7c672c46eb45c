"""Whole files or none."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.pieces import Piece
from globus_compute_apptainer.store import files


def test_copy_says_what_is_there(tmp_path: Path):
    content = os.urandom(files.CHUNK_BYTES + 17)
    (tmp_path / "a").write_bytes(content)
    copied = files.copy_durably(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    assert copied.sha256 == hashlib.sha256(content).hexdigest()
    assert copied.size == len(content)


def test_what_is_known_is_not_read_to_seal(tmp_path: Path):
    content = os.urandom(50_000)
    (tmp_path / "a").write_bytes(content)
    known = Piece(20_000, "of a base")  # which nobody looks at
    pieces = files.seal(tmp_path / "a", known=((10_000, known),)).pieces
    ends = (content[:10_000], content[30_000:])
    first, last = (Piece(len(e), hashlib.sha256(e).hexdigest()) for e in ends)
    assert pieces == (first, known, last)


@pytest.mark.parametrize("at", [0, 30_000])
def test_sealed_is_named_as_it_reads(tmp_path: Path, at: int):
    content = os.urandom(50_000)
    (tmp_path / "a").write_bytes(content)
    part = content[at : at + 20_000]
    known = ((at, Piece(20_000, hashlib.sha256(part).hexdigest())),)
    sealed = files.seal(tmp_path / "a", known=known)
    sizes = [piece.size for piece in sealed.pieces]
    assert (sealed.size, len(sizes)) == (50_000, 2)
    assert files.name(tmp_path / "a", sizes) == sealed.sha256
    assert files.name(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("places", [[40_000], [0, 10_000]], ids=["beyond", "over"])
def test_known_pieces_that_cannot_be_there(tmp_path: Path, places: list[int]):
    (tmp_path / "a").write_bytes(bytes(50_000))
    known = tuple((place, Piece(20_000, "x")) for place in places)
    with pytest.raises(OSError, match="lacks what was put into it"):
        files.seal(tmp_path / "a", known=known)


def test_copy_never_overwrites(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        files.copy_durably(tmp_path / "a", tmp_path / "b")


def test_a_copy_that_reads_back_differently_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(files, "sha256", lambda path, cancel: "0" * 64)
    with pytest.raises(OSError) as caught:
        files.copy_durably(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno == errno.EIO


def test_replace_leaves_one_file(tmp_path: Path):
    path, tmp = tmp_path / "x.json", tmp_path / "tmp"
    tmp.mkdir()
    for text in ("one", "two"):
        files.replace_durably(path, text, tmp)
        assert path.read_text() == text
    assert list(tmp.iterdir()) == []


def test_a_failed_replace_leaves_nothing(tmp_path: Path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    with pytest.raises(OSError):
        files.replace_durably(tmp_path / "none/x.json", "text", tmp)
    assert list(tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "hinted"),
    [
        (errno.ENOSPC, "disk-full", True),
        (errno.EDQUOT, "disk-full", True),
        (errno.EROFS, "cache-unusable", True),
        (errno.EACCES, "cache-unusable", True),
        (errno.EPERM, "cache-unusable", True),
        (errno.EIO, "cache-unusable", False),
        (errno.ESTALE, "cache-unusable", False),
    ],
)
def test_what_a_person_is_told(number: int, code: str, hinted: bool):
    with pytest.raises(StoreError) as caught, files.translated(Path("/cache")):
        raise OSError(number, os.strerror(number))
    error = caught.value
    assert (error.code, error.path, bool(error.hint)) == (code, "/cache", hinted)
    assert os.strerror(number) in error.message


@pytest.mark.parametrize("chunks", [0, 2, 4, 5])
def test_a_copy_can_be_cancelled_while_written_and_while_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
):
    """Of six looks at the event, three are while copying and three afterwards."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 1)
    (tmp_path / "a").write_text("abc")
    looks = iter([False] * chunks + [True])
    cancel = SimpleNamespace(is_set=lambda: next(looks))
    with pytest.raises(StoreError) as caught:
        files.copy_durably(tmp_path / "a", tmp_path / "b", cancel)
    assert caught.value.code == "build-cancelled"
