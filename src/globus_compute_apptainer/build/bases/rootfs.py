"""The layers of an OCI image, merged into one archive of its whole file system.

Runs in the endpoint process. The layers are read from the uppermost down, each once
and as a stream: what an upper layer has said of a path hides what a lower one says.
Never unpacked, so it takes neither root nor subordinate ids, and owners and modes
arrive as they are.

Guaranteed: the result is what unpacking the layers one over the other gives, or
:exc:`MergeError` is raised. The latter is for the rare cases that cannot be decided
in one pass; Apptainer itself unpacks those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.bases import tarstream
from globus_compute_apptainer.build.bases.tarstream import (
    Entry,
    Pieces,
    TarError,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

END: Final = b"\0" * (2 * tarstream.BLOCK)

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


class MergeError(TarError):
    """Layers that one pass cannot merge."""


class Merge:
    """Takes layers, the uppermost first, and writes what shows of them.

    What :meth:`add` wrote before them lies above all layers, what it writes later
    below.
    """

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write = write
        self._seen: dict[bytes, bool] = {}  # name → whether it is a directory
        # Directories that entries lie in, although no header may have named them yet.
        self._implied: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def layer(self, pieces: Iterable[bytes]) -> None:
        """Merge the next lower layer.

        :param pieces: of its archive, not compressed
        :raises MergeError: see the class
        :raises TarError: it is not an archive that is understood
        """
        archive = Pieces(iter(pieces))
        below = _Layer(self._seen, self._gone, self._opaque)
        for entry in tarstream.entries(archive):
            folder, _, last = entry.name.rpartition(b"/")
            if last.startswith(_WHITEOUT):
                below.white_out(folder, last)
            elif entry.name and below.shows(entry):
                self._emit(entry, archive)
                continue
            archive.move(padded(entry.size), _drop)
        self._gone |= below.gone
        self._opaque |= below.opaque
        self._seen.update(below.own)
        for name in below.own:
            self._imply(name)
        self._check_implied()

    def add(self, name: bytes, archive: bytes, *, directory: bool) -> None:
        """Write one more entry, unless its name is taken, or leads through a link.

        :param archive: the entry as in an archive, padded
        """
        parts = name.split(b"/")
        above = (b"/".join(parts[:count]) for count in range(1, len(parts)))
        if name in self._seen or any(self._seen.get(one) is False for one in above):
            return
        self._seen[name] = directory
        self._imply(name)
        self._write(archive)

    def end(self) -> None:
        """Nothing more comes."""
        self._write(END)

    def _emit(self, entry: Entry, archive: Pieces) -> None:
        self._write(entry.header)
        archive.move(padded(entry.size), self._write)

    def _imply(self, name: bytes) -> None:
        folder = name.rpartition(b"/")[0]
        while folder and folder not in self._implied:
            self._implied.add(folder)
            folder = folder.rpartition(b"/")[0]

    def _check_implied(self) -> None:
        """An entry below what is a link, in this layer or a lower one, would have been
        unpacked through the link."""
        for name in self._implied:
            if self._seen.get(name) is False:
                raise MergeError("an entry lies below one that is no directory")


class _Layer:
    """One layer while it is read: what the ones above leave visible of it."""

    def __init__(
        self, seen: dict[bytes, bool], gone: set[bytes], opaque: set[bytes]
    ) -> None:
        self._above, self._above_gone, self._above_opaque = seen, gone, opaque
        self._hidden: dict[bytes, bool] = {b"": b"" in opaque}
        self._flat: set[bytes] = set()  # what is no directory, hidden or not
        self.own: dict[bytes, bool] = {}
        self.gone: set[bytes] = set()
        self.opaque: set[bytes] = set()

    def white_out(self, folder: bytes, last: bytes) -> None:
        if last == _OPAQUE:
            self.opaque.add(folder)
        elif not last.startswith(_WHITEOUT * 2):  # others of aufs mean nothing here
            name = last[len(_WHITEOUT) :]
            self.gone.add(folder + b"/" + name if folder else name)

    def shows(self, entry: Entry) -> bool:
        """Whether the entry is to be written; remembers it then."""
        name = entry.name
        if name in self.own:
            if self.own[name] and entry.is_directory:
                return False
            raise MergeError("a layer has two entries of one name")
        folder = name.rpartition(b"/")[0]
        if self._inside_hidden(folder):
            return False
        if folder in self._flat:
            raise MergeError("an entry lies below one that is no directory")
        if not entry.is_directory:
            self._flat.add(name)
        if name in self._above_gone:
            return False
        if name in self._above:
            # A directory of an upper layer replaced this, and with it whatever a
            # still lower layer has in a directory of that name.
            if not entry.is_directory:
                self.opaque.add(name)
            return False
        if entry.kind == tarstream.HARD_LINK and entry.link not in self.own:
            raise MergeError("a link to a file that is not in the same layer")
        self.own[name] = entry.is_directory
        return True

    def _inside_hidden(self, folder: bytes) -> bool:
        """Whether upper layers hide everything in a directory."""
        known = self._hidden.get(folder)
        if known is None:
            known = (
                folder in self._above_gone
                or folder in self._above_opaque
                or self._above.get(folder) is False
                or self._inside_hidden(folder.rpartition(b"/")[0])
            )
            self._hidden[folder] = known
        return known


def _drop(_: memoryview) -> None:
    pass
