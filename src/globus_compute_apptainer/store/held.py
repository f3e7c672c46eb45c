"""A lock while it is held: what its holder can do with it; see :mod:`.locks`.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.records import numbers, read, record

if TYPE_CHECKING:
    from pathlib import Path

    from globus_compute_apptainer.store.presence import Presence

log = logging.getLogger(__name__)

TELL_SECONDS: Final = 0.5
PROGRESS: Final = ".progress"

News = Mapping[str, Any]


class Held:
    """A lock that is held; made by :func:`.locks.hold`."""

    def __init__(
        self, folder: Path, number: int, name: str, presence: Presence
    ) -> None:
        self._folder, self._number, self._name = folder, number, name
        self._presence, self._told, self._pid = presence, 0.0, os.getpid()
        self._path = folder / record(number)
        presence.begin(name, lambda: os.utime(self._path))

    def check(self) -> None:
        """For what must not be done by two.

        :raises StoreError: another process has taken the lock over (``lock-lost``)
        """
        with files.translated(self._folder):
            found = _present(self._folder)
        top = max(found, default=0)
        if top != self._number or found[top] or not self._is_mine():
            raise StoreError(
                "another process took this image's lock over: this one was silent"
                " for too long",
                hint="is the machine, or the file system of `cache_dir`, overloaded?",
                code="lock-lost",
                path=str(self._folder),
            )

    def tell(self, news: News, *, at_once: bool = False) -> None:
        """Let those who wait know; most of what is told in quick succession is
        dropped. Never raises for a file system that is full or gone.

        :param news: plain JSON
        :param at_once: this one is not dropped
        """
        now = time.monotonic()
        if not at_once and now - self._told < TELL_SECONDS:
            return
        self._told = now
        text = json.dumps({"number": self._number, "news": dict(news)})
        new = self._folder / owned_name(PROGRESS)
        with contextlib.suppress(OSError):
            try:
                new.write_text(text, encoding="utf-8")
                new.replace(self._folder / PROGRESS)
            finally:
                new.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        """Whether the record is this one's: a process that was silent for weeks may
        find another's of the same number, in a directory that was made since."""
        told = read(self._path)
        return not told or told["name"] == self._name

    def forget(self) -> None:
        """Leave the record as it is: the lock itself is gone."""
        self._presence.end(self._name)

    def release(self) -> None:
        """Free it; a forked child frees nothing of its parent's."""
        if os.getpid() != self._pid:
            return
        if not self._is_mine():
            self.forget()
            return
        try:
            with contextlib.suppress(OSError):
                (self._folder / PROGRESS).unlink()
            self._path.rename(self._path.with_suffix(".free"))
        except OSError as error:
            # This process, asked again, knows that it does not hold it.
            log.warning("the lock %s cannot be released: %s", self._path, error)
        finally:
            self._presence.end(self._name)


def _present(folder: Path) -> dict[int, bool]:
    try:
        return numbers(folder)
    except FileNotFoundError:
        return {}
