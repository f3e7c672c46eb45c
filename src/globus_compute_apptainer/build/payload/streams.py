"""Streams for reading archives without taking more memory than is meant.

Runs in the endpoint process.
"""

from __future__ import annotations

import lzma
from typing import IO, Final, Protocol

from globus_compute_apptainer.build.payload.contents import PIECE_BYTES, Broken

HEADER_BYTES: Final = 1024**2
"""Of one header of a tar archive."""

MAX_PADDING: Final = 64 * 1024**2
"""After the last entry of a tar archive."""

MEMORY_BYTES: Final = 256 * 1024**2
"""That a decompressor may take."""


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Forward:
    """A stream as :mod:`tarfile` wants it: it can go forward, and says where it is."""

    def __init__(self, source: Reader) -> None:
        self._source, self._at = source, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise Broken("it has a header without end")
        parts = []
        while size and (piece := self._source.read(size)):
            parts.append(piece)
            size -= len(piece)
            self._at += len(piece)
        return b"".join(parts)

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or place < self._at:
            raise Broken("it is not in order")
        while self._at < place:
            if not self.read(min(place - self._at, PIECE_BYTES)):
                raise Broken("it ends too early")
        return self._at

    def seekable(self) -> bool:
        return True

    def drain(self) -> None:
        """Read to the end, where checksums are.

        :raises Broken: there is much more than the padding that writers add
        """
        for _ in range(MAX_PADDING // PIECE_BYTES):
            if not self.read(PIECE_BYTES):
                return
        raise Broken("it goes on after its end")


class Bounded:
    """A file of which nothing large is read at once."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = self._limit
            found = self._file.read(size + 1)
            if len(found) > size:
                raise Broken("its directory is too long")
            return found
        if size > self._limit:
            raise Broken("its directory is too long")
        return self._file.read(size)

    def seekable(self) -> bool:
        return True


class Xz:
    """:mod:`lzma` with a limit on memory; several streams in a row are one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._now = self._fresh()

    def _fresh(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=MEMORY_BYTES)

    def read(self, size: int) -> bytes:
        while True:
            if self._now.eof:
                rest = self._now.unused_data.lstrip(b"\0")
                rest = rest or self._file.read(PIECE_BYTES).lstrip(b"\0")
                if not rest:
                    return b""
                self._now = self._fresh()
                found = self._now.decompress(rest, size)
            else:
                piece = self._file.read(PIECE_BYTES) if self._now.needs_input else b""
                if self._now.needs_input and not piece:
                    raise EOFError("it ends too early")
                found = self._now.decompress(piece, size)
            if found:
                return found


class Zstd:
    """:mod:`zstandard` with a limit on memory; several frames in a row are one."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard  # noqa: PLC0415 - most payloads do not need it
        except ImportError:
            raise Broken("this endpoint cannot read zstd archives") from None
        machine = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES // 2)
        self._reader = machine.stream_reader(file, read_across_frames=True)
        self._error = zstandard.ZstdError

    def read(self, size: int) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise EOFError(str(error)) from error
