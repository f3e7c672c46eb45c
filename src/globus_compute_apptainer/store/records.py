"""The numbered records of one lock, as files; see :mod:`.locks` for what they mean.

Runs in the endpoint process and in ``gc-apptainer``. A lock's directory may be removed
and made anew at any moment by others, and numbers then begin anew. So what is listed
and made for one attempt to hold the lock is listed and made in one directory, through
its descriptor, whatever its name leads to meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.owners import owned_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD: Final = ".record"
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_NAME: Final = re.compile(r"(\d{8,})(\.free)?\Z")


class Records:
    """Those in the directory that had the lock's name when it was opened.

    Every method raises :exc:`FileNotFoundError`, or an :exc:`OSError` with ``ESTALE``,
    once that directory is deleted.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder, self._at = folder, descriptor

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator[Records]:
        """The directory is made where it is missing."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            descriptor = os.open(folder, flags)
        except FileNotFoundError:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Not ``exist_ok``: that looks again, when it may have been removed.
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            descriptor = os.open(folder, flags)
        try:
            yield cls(folder, descriptor)
        finally:
            os.close(descriptor)

    def numbers(self) -> dict[int, bool]:
        """Their numbers, and whether each is free."""
        return numbers(self._at)

    def are_in_place(self) -> bool:
        """Whether the lock's name still leads to this directory."""
        try:
            return os.path.samestat(self._folder.stat(), os.fstat(self._at))
        except FileNotFoundError:
            return False

    def make(self, number: int, text: str) -> bool:
        """Make a record, unless another process is quicker."""
        whole, name = owned_name(RECORD), record(number)
        try:
            self._write(whole, text)
            return self._linked(whole, name) or self._copied(name, text)
        except FileExistsError:
            # A network file system may have lost its own answer and asked again.
            return os.stat(whole, dir_fd=self._at).st_nlink > 1
        finally:
            self._unlink(whole)

    def withdraw(self, number: int) -> None:
        """Remove a record that was made here."""
        self._unlink(record(number))

    def _linked(self, whole: str, name: str) -> bool:
        """Give a file that is whole its name; False where there are no hard links.

        :raises FileExistsError: another has that name
        """
        try:
            os.link(whole, name, src_dir_fd=self._at, dst_dir_fd=self._at)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _copied(self, name: str, text: str) -> bool:
        """Without hard links a name is made first and the content follows: a process
        that is killed in between leaves a record that says nothing, and counts as
        dead late.

        :raises FileExistsError: another has that name
        """
        try:
            self._write(name, text)
        except FileExistsError:
            raise
        except OSError:
            self._unlink(name)
            raise
        return True

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(name, _NEW, 0o666, dir_fd=self._at)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._at)


def numbers(folder: Path | int) -> dict[int, bool]:
    """The records' numbers, and whether each is free.

    :param folder: or a descriptor of it
    """
    found: dict[int, bool] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.match(entry.name):
                number = int(match[1])
                found[number] = bool(match[2]) or found.get(number, False)
    return found


def record(number: int, *, free: bool = False) -> str:
    """The name of a record."""
    return f"{number:08d}{'.free' if free else ''}"


def read(path: Path) -> dict[str, Any]:
    """What a record says; nothing where it is damaged or not yet written."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(told[key]) for key in ("owner", "name", "host", "pid")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
