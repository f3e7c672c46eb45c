"""What lies in a cache that is nobody's: unfinished things, other versions' caches.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator

LITTER_SECONDS: Final = 86400.0
"""Of other machines nothing can be known: what they left goes after a day."""

_LEFT: Final[set[Path]] = set()
"""What this process could not remove."""

_VERSIONS: Final = re.compile(r"v\d+\Z")


def other_versions(root: Path, version: str) -> list[Path]:
    """Caches of older and newer versions in the same place, which are left alone."""
    try:
        found = [path for path in root.iterdir() if _VERSIONS.match(path.name)]
    except OSError:
        return []
    return sorted(path for path in found if path.name != version)


def old_litter(folder: Path) -> Iterator[Path]:
    """Whatever is more than a day old."""
    oldest = time.time() - LITTER_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime <= oldest:
                    yield path


def leavings_of(folder: Path, owner: Owner) -> Iterator[Path]:
    """What one process left, dead or taken for dead."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if Owner.of_name(path.name) == owner:
                yield path


def delete_at_last(path: Path) -> None:
    """Remove a file or a tree of this process; where that cannot be done now, as
    :func:`delete_left` finds it."""
    delete(path)
    if os.path.lexists(path):
        _LEFT.add(path)


def delete_left(folder: Path) -> None:
    """Remove what this process could not remove from a directory before."""
    for path in [path for path in _LEFT.copy() if path.parent == folder]:
        delete(path)
        if not os.path.lexists(path):
            _LEFT.discard(path)


def delete(path: Path) -> None:
    """Remove a file or a tree, as far as that can be done."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
