"""What references were found to mean, and when: one small file each.

Runs in the endpoint process. Written by one rename, so that several processes may
share the directory; a file that cannot be read counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1

SETTLED_SECONDS: Final = 2.0
"""A file that was changed less long ago may change again without its time doing so."""

PIECE_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True)
class Known:
    """What a reference meant.

    :param digest: of the image for this machine
    :param index_digest: of the index that the reference names, if it names one
    :param layers: digests of the image's layers, lowest first
    :param asked_at: when that was last known to be so, seconds since the epoch
    """

    digest: str
    asked_at: float
    index_digest: str | None = None
    layers: tuple[str, ...] = ()

    @property
    def top_digest(self) -> str:
        return self.index_digest or self.digest


class Tags:
    """Known references below one directory, which is made when first written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, *key: str) -> Known | None:
        """What is known of ``key``, such as a reference and a machine's kind."""
        try:
            told = json.loads(self._path(key).read_text(encoding="utf-8"))
            return _known(told, key)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, known: Known, *key: str) -> None:
        """Remember it. Failing to is no error: then it is asked again.

        :param key: any texts; another order is another key
        """
        told = {
            "format": FORMAT,
            "key": list(key),
            "digest": known.digest,
            "index_digest": known.index_digest,
            "layers": list(known.layers),
            "asked_at": known.asked_at,
        }
        path = self._path(key)
        new = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
                new.replace(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    new.unlink()

    def _path(self, key: tuple[str, ...]) -> Path:
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()
        return self._folder / f"{name}.json"


def file_key(path: Path, now: float) -> tuple[str, ...] | None:
    """A key that changes whenever the file does; None while that is not sure.

    :raises OSError: it is not there
    """
    found = path.stat()
    if now - found.st_mtime < SETTLED_SECONDS:
        return None
    times = (found.st_mtime_ns, found.st_ctime_ns)  # the second cannot be set
    facts = (found.st_dev, found.st_ino, found.st_size, *times)
    return (str(path), *map(str, facts))


def sha256_of(path: Path, check: Callable[[int], None]) -> str:
    """``sha256:…`` of a file's content.

    :param check: gets the bytes read so far; ends it by raising
    """
    sha, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            sha.update(piece)
            done += len(piece)
            check(done)
    return f"sha256:{sha.hexdigest()}"


def written_time(seconds: float) -> str:
    """Such as ``2026-11-22T17:00:00Z``."""
    when = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _known(told: Mapping[str, Any], key: tuple[str, ...]) -> Known:
    """:raises ValueError: (or the like) it is not what :meth:`Tags.write` wrote"""
    if told["format"] != FORMAT or tuple(told["key"]) != key:
        raise ValueError
    index, layers = told["index_digest"], told["layers"]
    texts = [told["digest"], *([index] if index is not None else []), *layers]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError
    return Known(told["digest"], float(told["asked_at"]), index, tuple(layers))
