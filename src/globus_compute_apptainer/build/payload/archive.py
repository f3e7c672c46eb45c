"""Unpacking archives: zip, and tar however it is compressed.

Runs in the endpoint process, in the thread of a build. What an archive is, its first
bytes say, not its name. :mod:`.contents` says what may come of it; beyond that, no
more memory is taken than a few hundred megabytes, and what is unpacked may be larger
than the archive by no more than :data:`RATIO`.
"""

from __future__ import annotations

import bz2
import calendar
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from errno import EILSEQ, EINVAL, ENAMETOOLONG
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

from globus_compute_apptainer.build.payload.contents import (
    MAX_LINK,
    PIECE_BYTES,
    Broken,
    Contents,
    Limits,
)
from globus_compute_apptainer.build.payload.streams import (
    Bounded,
    Forward,
    Reader,
    Xz,
    Zstd,
)

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

EXPANSION: Final = 10
"""How many times as large as ``build.max_payload_size`` all files may be together."""

RATIO: Final = 200
"""How many times as large as the archive its files may be, beyond
:data:`ALWAYS_BYTES`; text reaches 20, and little but zeros more than 200."""

ALWAYS_BYTES: Final = 256 * 1024**2
DIRECTORY_BYTES: Final = 16 * 1024**2
"""Of the central directory of a zip archive."""

_BROKEN: Final = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, KeyError, IndexError, OverflowError, RuntimeError),
)
_BAD_NAME: Final = frozenset({None, ENAMETOOLONG, EILSEQ, EINVAL})


def unpack(job: Job, archive: Path, root: Path) -> Limits:
    """Unpack into an empty directory, and say how much it was.

    A single directory that holds all the rest is left out, as forges make one for
    every archive: unless it is a Python package, or ``binder`` or ``.binder``.

    :raises BuildError: see :func:`invalid`, and ``payload-too-large``
    """
    size = archive.stat().st_size
    allowed = min(job.config.max_payload_size * EXPANSION, ALWAYS_BYTES + RATIO * size)
    limits = Limits(job, allowed)
    tree = Contents(root, limits)
    try:
        with archive.open("rb") as file:
            _unpack(file, tree)
        tree.finish()
    except _BROKEN as error:
        why = str(error) if isinstance(error, Broken) else f"it is damaged ({error})"
        raise invalid(job, why) from error
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise invalid(job, f"it is damaged ({error})") from error
        raise
    _strip(root)
    return limits


def invalid(job: Job, why: str, hint: str = "") -> BuildError:
    """The error of a payload that cannot be used."""
    return job.error(
        f"the payload cannot be unpacked: {why}"[:400],
        code="payload-invalid",
        hint=hint
        or "an archive is a zip file, or tar, perhaps compressed with gzip, "
        "bzip2, xz or zstd",
    )


def _unpack(file: IO[bytes], tree: Contents) -> None:
    head = file.read(512)
    file.seek(0)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        _unzip(file, tree)
        return
    opened = next((make for magic, make in _MAGIC if head.startswith(magic)), None)
    if opened is None and head[257:262] != b"ustar":
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        raise Broken(
            "the URL leads to a web page (for a repository write git+https://…)"
            if page
            else "it is not an archive of a known kind"
        )
    _untar(opened(file) if opened else file, tree)


def _unzip(file: IO[bytes], tree: Contents) -> None:
    with zipfile.ZipFile(cast("Any", Bounded(file, DIRECTORY_BYTES))) as archive:
        for entry in archive.infolist():
            mode = entry.external_attr >> 16
            when = calendar.timegm((*entry.date_time, 0, 0, 0))
            kind = stat.S_IFMT(mode) if entry.create_system == 3 else 0
            if entry.flag_bits & 1:
                raise Broken("it is encrypted")
            if entry.is_dir():
                tree.folder(entry.filename, when)
            elif kind == stat.S_IFLNK:
                with archive.open(entry) as source:
                    tree.link(entry.filename, os.fsdecode(source.read(MAX_LINK + 1)))
            elif kind in (0, stat.S_IFREG):
                with archive.open(entry) as source:
                    tree.file(
                        entry.filename, entry.file_size, _pieces(source), mode, when
                    )
            else:
                raise Broken(f"{entry.filename!r:.80} is a device or the like")


def _untar(source: Reader, tree: Contents) -> None:
    stream = Forward(source)
    with tarfile.open(fileobj=cast("Any", stream), mode="r:") as archive:
        while (entry := archive.next()) is not None:
            when = int(entry.mtime)
            if entry.isdir():
                tree.folder(entry.name, when)
            elif entry.issym():
                tree.link(entry.name, entry.linkname)
            elif entry.islnk():
                tree.hard_link(entry.name, entry.linkname)
            elif entry.isfile():
                content = archive.extractfile(entry)
                pieces = _pieces(content) if content else iter(())
                tree.file(entry.name, entry.size, pieces, entry.mode, when)
            else:
                raise Broken(f"{entry.name!r:.80} is a device or the like")
            vars(archive)["members"] = []  # they are not needed, and there may be many
    stream.drain()


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(PIECE_BYTES):
        yield piece


def _strip(root: Path) -> None:
    inner = list(root.iterdir())
    if len(inner) != 1 or inner[0].is_symlink() or not inner[0].is_dir():
        return
    if inner[0].name in ("binder", ".binder") or (inner[0] / "__init__.py").exists():
        return
    aside = root.with_name(f"{root.name}.inner")
    inner[0].rename(aside)
    root.rmdir()
    aside.rename(root)


_MAGIC: Final[tuple[tuple[bytes, Callable[[IO[bytes]], Reader]], ...]] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", Xz),
    (b"\x28\xb5\x2f\xfd", Zstd),
)
