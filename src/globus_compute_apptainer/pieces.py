"""What an image is named by: the SHA-256 of its pieces.

Runs wherever images are made, checked or copied. An image is mostly a copy of a
base and of layers that were read for their digests when they were made. So that they
are not read once more for every image, an image's digest is made of those of its
pieces, which follow one another in the file::

    SHA-256 of a line "SIZE SHA256" for each piece

and of an image of one piece simply that piece's, as ``sha256sum`` tells it. The digest
says what was put into the file, not what was found there: a copy that went wrong has
another one when it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

CHUNK_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file.

    :param size: in bytes
    :param sha256: hex
    """

    size: int
    sha256: str


Known = tuple[tuple[int, Piece], ...]
"""Pieces of a file that were hashed before, each with its place (bytes)."""


def name_of(pieces: Sequence[Piece]) -> str:
    """The SHA-256, hex, that a file of these pieces is named by."""
    if len(pieces) == 1:
        return pieces[0].sha256
    lines = "".join(f"{piece.size} {piece.sha256}\n" for piece in pieces)
    return hashlib.sha256(lines.encode()).hexdigest()


class Hasher:
    """Reads a file's bytes in order, and finds its pieces.

    :param sizes: of the pieces; bytes that follow are one more. None: there is one
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self._sizes = list(sizes)
        self._done: list[Piece] = []
        self._digest, self._size = hashlib.sha256(), 0

    def update(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        rest = memoryview(chunk)
        while rest:
            number = len(self._done)
            room = len(rest)
            if number < len(self._sizes):
                room = min(room, self._sizes[number] - self._size)
            self._digest.update(rest[:room])
            self._size += room
            rest = rest[room:]
            if number < len(self._sizes) and self._size == self._sizes[number]:
                self._end()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What was found so far; an empty file is one empty piece."""
        if not self._size and self._done:
            return tuple(self._done)
        return (*self._done, Piece(self._size, self._digest.hexdigest()))

    @property
    def name(self) -> str:
        """See :func:`name_of`."""
        return name_of(self.pieces)

    def _end(self) -> None:
        self._done.append(Piece(self._size, self._digest.hexdigest()))
        self._digest, self._size = hashlib.sha256(), 0


def read_piece(
    file: IO[bytes], start: int, size: int, check: Callable[[], None]
) -> Piece:
    """A piece of an open file, which is shorter where the file ends before.

    :param check: called now and then; ends the reading by raising
    """
    hasher, left = Hasher(), size
    file.seek(start)
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        check()
        hasher.update(chunk)
        left -= len(chunk)
    return hasher.pieces[0]
