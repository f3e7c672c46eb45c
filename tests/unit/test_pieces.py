"""A name made of pieces: however the bytes come, and told from every other content."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.pieces import Hasher, Piece, name_of, read_piece


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(content: bytes, sizes: list[int], chunk: int) -> Hasher:
    hasher = Hasher(sizes)
    for at in range(0, len(content), chunk):
        hasher.update(content[at : at + chunk])
    return hasher


def test_one_piece_is_named_as_sha256sum_does() -> None:
    assert read(b"content", [], 3).name == sha256(b"content")
    assert read(b"content", [7], 3).name == sha256(b"content")
    assert Hasher().name == sha256(b"")


def test_several_are_named_by_the_list_of_theirs() -> None:
    hasher = read(b"abcdef", [2, 3], 4)
    pieces = (Piece(2, sha256(b"ab")), Piece(3, sha256(b"cde")), Piece(1, sha256(b"f")))
    assert hasher.pieces == pieces
    lines = "".join(f"{piece.size} {piece.sha256}\n" for piece in pieces)
    assert hasher.name == name_of(pieces) == sha256(lines.encode())


@given(
    st.binary(max_size=200),
    st.lists(st.integers(1, 60), max_size=6),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_how_the_bytes_come_makes_no_difference(
    content: bytes, sizes: list[int], one: int, other: int
) -> None:
    found = read(content, sizes, one)
    assert found.pieces == read(content, sizes, other).pieces
    assert sum(piece.size for piece in found.pieces) == len(content)
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    starts = [0, *(end for end in ends if end < len(content))]
    expected = [
        content[start:end]
        for start, end in zip(starts, [*starts[1:], len(content)], strict=True)
    ]
    assert [piece.sha256 for piece in found.pieces] == [sha256(p) for p in expected]


@given(st.binary(min_size=1, max_size=99), st.lists(st.integers(1, 40)), st.data())
def test_one_other_byte_is_another_name(content: bytes, sizes: list[int], data) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    other = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    assert read(content, sizes, 16).name != read(other, sizes, 16).name


def test_a_piece_is_read_where_it_is() -> None:
    file = io.BytesIO(b"0123456789")
    assert read_piece(file, 2, 5, lambda: None) == Piece(5, sha256(b"23456"))
    assert read_piece(file, 8, 5, lambda: None) == Piece(2, sha256(b"89"))
    assert read_piece(file, 3, 0, lambda: None) == Piece(0, sha256(b""))


def test_reading_a_piece_can_be_ended() -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        read_piece(io.BytesIO(b"content"), 0, 7, check)
