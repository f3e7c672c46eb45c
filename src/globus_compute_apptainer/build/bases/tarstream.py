"""Reading a tar archive as a stream, each header kept as it was written.

Runs in the endpoint process. :mod:`tarfile` rebuilds headers and takes ten times as
long; here the bytes of an entry are passed on unchanged, so all that is written in
them (times, owners, long names) arrives. Refused is what this does not understand:
sparse files, archives older than POSIX, names that leave the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK: Final = 512
MAX_EXTENDED_BYTES: Final = 1024**2

DIRECTORY: Final = b"5"
HARD_LINK: Final = b"1"
_WITHOUT_DATA: Final = b"123456"
_KNOWN: Final = frozenset(bytes([digit]) for digit in b"01234567")


class TarError(ValueError):
    """An archive that this module does not understand, or not at all an archive."""


@dataclass(frozen=True)
class Entry:
    """One entry.

    :param name: without leading ``./`` and ``/`` and final ``/``; empty for the root
    :param kind: the header's type flag
    :param link: target of a hard link, in the form of ``name``; else empty
    :param size: bytes of data that follow
    :param header: all blocks before the data, as written
    """

    name: bytes
    kind: bytes
    link: bytes
    size: int
    header: bytes

    @property
    def is_directory(self) -> bool:
        return self.kind == DIRECTORY


class Pieces:
    """Bytes that come in pieces, taken in any portions."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes; fewer only at the end."""
        if size <= len(self._held):
            found, self._held = self._held[:size], self._held[size:]
            return bytes(found)
        parts: list[bytes] = []
        self.move(size, lambda part: parts.append(bytes(part)), whole=False)
        return b"".join(parts)

    def move(
        self, size: int, write: Callable[[memoryview], object], *, whole: bool = True
    ) -> None:
        """Hand on ``size`` bytes without putting them together.

        :raises TarError: there are fewer, and ``whole``
        """
        while size:
            if not self._held:
                piece = next(self._pieces, None)
                if piece is None:
                    if whole:
                        raise TarError("the archive ends too early")
                    return
                self._held = memoryview(piece)
            part, self._held = self._held[:size], self._held[size:]
            size -= len(part)
            write(part)


def padded(size: int) -> int:
    """Bytes that data of this size takes in an archive."""
    return -(-size // BLOCK) * BLOCK


def entries(archive: Pieces) -> Iterator[Entry]:
    """The entries; before the next one, :func:`padded` bytes must have been taken.

    :raises TarError: see the module
    """
    extended: dict[bytes, bytes] = {}
    before = b""
    while True:
        block = archive.take(BLOCK)
        if not block.strip(b"\0"):  # the end, or a lack of it
            if before:
                raise TarError("the archive ends within an entry")
            return
        if len(block) < BLOCK or block[257:262] != b"ustar":
            raise TarError("not a POSIX archive")
        kind = block[156:157].replace(b"\0", b"0")
        size = _number(block[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            data = _extension(archive, size)
            # What a global header says that matters is refused below; dropped here.
            extended.update(_told(kind, data[:size]))
            before += b"" if kind == b"g" else block + data
            continue
        yield _entry(block, kind, size, extended, before)
        extended, before = {}, b""


def _extension(archive: Pieces, size: int) -> bytes:
    if size > MAX_EXTENDED_BYTES:
        raise TarError("a header without end")
    return archive.take(padded(size))


def _told(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    if kind == b"L":
        return {b"path": data.rstrip(b"\0")}
    if kind == b"K":
        return {b"linkpath": data.rstrip(b"\0")}
    told = _records(data)
    odd = any(key.startswith(b"GNU.sparse") for key in told)
    if odd or (kind == b"g" and told.keys() & {b"path", b"linkpath", b"size"}):
        raise TarError("headers of a kind that is not supported")
    return told if kind == b"x" else {}


def _records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n`` and again."""
    found: dict[bytes, bytes] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data):
            raise TarError("a broken header")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise TarError("a broken header")
        found[key] = value[:-1]
    return found


def _entry(
    block: bytes, kind: bytes, size: int, extended: dict[bytes, bytes], before: bytes
) -> Entry:
    if kind not in _KNOWN:
        raise TarError(f"an entry of the kind {kind!r}")
    if b"size" in extended:
        size = int(extended[b"size"])
    name = extended.get(b"path") or _ustar_name(block)
    if kind in (b"0", b"7") and name.endswith(b"/"):
        kind = DIRECTORY
    if size < 0 or (size and kind in _WITHOUT_DATA):
        raise TarError("a size that cannot be")
    link = extended.get(b"linkpath") or _text(block[157:257])
    return Entry(
        name=_plain(name),
        kind=kind,
        link=_plain(link) if kind == HARD_LINK else b"",
        size=size,
        header=before + block,
    )


def _ustar_name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    posix = block[257:263] == b"ustar\0"
    return prefix + b"/" + name if posix and prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _plain(name: bytes) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise TarError("a name that leaves the archive")
    return b"/".join(parts)


def _number(field: bytes) -> int:
    """Octal text, or GNU's binary form."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarError("a broken header") from None
