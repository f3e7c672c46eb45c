"""A directory that is filled with files nobody vouches for, and what is in it then.

Runs in the endpoint process, in the thread of a build.

Guarantees: nothing is written outside the directory, whatever the names say and in
whatever order they come; of a file's mode only its executable bit counts; limits hold
on what is really written. Symbolic links are made last, so that nothing is written
through one, and none may lead out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.payload.download import too_large

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job

MAX_ENTRIES: Final = 100_000
MAX_TIME: Final = 2**32 - 1
"""The latest time that squashfs can keep."""

MAX_LINK: Final = 4096
PIECE_BYTES: Final = 256 * 1024
_DROPPED: Final = frozenset({"__MACOSX"})


class Broken(ValueError):  # noqa: N818 - what the payload is
    """A payload that is not accepted; says why."""


class Limits:
    """Counts what is unpacked.

    :param size: bytes that all files together may have
    """

    def __init__(self, job: Job, size: int, entries: int = MAX_ENTRIES) -> None:
        self._job, self._size, self._entries = job, size, entries
        self.files = self.bytes = 0

    def entry(self) -> None:
        """:raises BuildError: it is one too many (``payload-too-large``)"""
        self.files += 1
        if self.files % 256 == 0:
            self._job.check()
        if self.files > self._entries:
            raise self._job.error(
                f"the payload has more than {self._entries} files",
                code="payload-too-large",
                hint="keep data out of the payload",
            )

    def claimed(self, size: int) -> None:
        """:raises BuildError: an entry says that it is larger than all may be"""
        if size > self._size:
            raise too_large(self._job, size, self._size)

    def more(self, size: int) -> None:
        """:raises BuildError: that is too much (``payload-too-large``)"""
        self._job.check()
        self.bytes += size
        if self.bytes > self._size:
            raise too_large(self._job, None, self._size)


class Contents:
    """A directory that is being filled."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root, self._limits = root, limits
        self._kinds: dict[str, str] = {"": "folder"}
        self._links: dict[str, str] = {}
        self._times: dict[str, int] = {}

    def folder(self, name: str, when: int) -> None:
        path = self._enter(name, "folder")
        if path is not None:
            self._times[path] = when

    def file(
        self, name: str, size: int, pieces: Iterator[bytes], mode: int, when: int
    ) -> None:
        """:param size: as it is claimed, for an early end"""
        path = self._enter(name, "file")
        if path is None:
            return
        self._limits.claimed(size)
        place = self._root / path
        place.unlink(missing_ok=True)
        with place.open("xb") as file:
            for piece in pieces:
                self._limits.more(len(piece))
                file.write(piece)
        place.chmod(0o755 if mode & 0o100 else 0o644)
        set_time(place, when)

    def hard_link(self, name: str, target: str) -> None:
        source = _plain(target)
        if self._kinds.get(source) != "file":
            raise Broken(
                f"{name!r:.80} is a link to {target!r:.80}, which is not there"
            )
        path = self._enter(name, "file")
        if path is None or path == source:
            return
        self._limits.more((self._root / source).stat().st_size)
        (self._root / path).unlink(missing_ok=True)
        os.link(self._root / source, self._root / path)

    def link(self, name: str, target: str) -> None:
        path = self._enter(name, "link")
        if path is None:
            return
        if (
            target.startswith("/")
            or not target
            or "\0" in target
            or len(target) > MAX_LINK
        ):
            raise Broken(f"{name!r:.80} is a link out of the payload")
        self._links[path] = target

    def finish(self) -> None:
        """Make the links, and give directories their times.

        :raises Broken: a link leads out of the tree
        """
        for path, target in self._links.items():
            (self._root / path).symlink_to(target)
        check_links(self._root, self._links)
        for path, when in sorted(self._times.items(), reverse=True):
            set_time(self._root / path, when)

    def _enter(self, name: str, kind: str) -> str | None:
        """The path in the tree, its directories made; None: leave it out."""
        self._limits.entry()
        path = _plain(name)
        if path.partition("/")[0] in _DROPPED or path.endswith("/.DS_Store"):
            return None
        if not path:
            if kind != "folder":
                raise Broken("an entry has no name")
            return None
        folder = path if kind == "folder" else path.rpartition("/")[0]
        self._make(folder, name)
        known = self._kinds.setdefault(path, kind)
        if known != kind:
            raise Broken(f"{name!r:.80} is there twice, as different things")
        return path

    def _make(self, folder: str, name: str) -> None:
        parts = folder.split("/") if folder else []
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            known = self._kinds.get(path)
            if known is None:
                self._limits.entry()
                (self._root / path).mkdir()
                self._kinds[path] = "folder"
            elif known != "folder":
                raise Broken(f"{name!r:.80} lies below something that is no directory")


def check_links(root: Path, links: Iterable[str] | None = None) -> None:
    """:param links: paths of all links, relative to ``root``; found if None
    :raises Broken: one leads out of the tree
    """
    top = os.path.realpath(root)
    for name in _links_of(top) if links is None else links:
        place = os.path.join(top, name)  # noqa: PTH118 - many, and they are text
        if os.readlink(place).startswith("/"):  # noqa: PTH115
            raise Broken(f"{name!r:.80} is a link out of the payload")
        end = os.path.realpath(place)
        if end != top and not end.startswith(f"{top}/"):
            raise Broken(f"{name!r:.80} is a link out of the payload")


def _links_of(top: str) -> Iterator[str]:
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            place = os.path.join(folder, name)  # noqa: PTH118
            if os.path.islink(place):  # noqa: PTH114
                yield os.path.relpath(place, top)


def _plain(name: str) -> str:
    if name.startswith("/") or "\0" in name:
        raise Broken(f"{name!r:.80} is not a relative path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Broken(f"{name!r:.80} leads out of the payload")
    return "/".join(parts)


def set_time(place: Path, when: int) -> None:
    when = max(0, min(when, MAX_TIME))
    os.utime(place, (when, when), follow_symlinks=False)


def digest(root: Path, job: Job) -> str:
    """``sha256:…`` of names, executable bits and bytes, but not of times."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*"), key=os.fsencode):
        job.check()
        name = os.fsencode(path.relative_to(root))
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode):
            kind, content = b"link", hashlib.sha256(os.fsencode(path.readlink()))
        elif stat.S_ISDIR(state.st_mode):
            kind, content = b"folder", hashlib.sha256()
        else:
            kind = b"program" if state.st_mode & 0o100 else b"file"
            content = _of_file(path, job)
        whole.update(kind + b" " + content.digest() + name + b"\0")
    return "sha256:" + whole.hexdigest()


def _of_file(path: Path, job: Job) -> hashlib._Hash:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES * 16):
            job.check()
            found.update(piece)
    return found
