"""What a build needs of the place where it keeps things for later builds.

The store's :class:`~..store.shelf.Shelf` is the real one; this package does not
import the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from contextlib import AbstractContextManager
    from pathlib import Path


class Keeper(Protocol):
    """Directories by key (``sha256:…``): whole or absent, never changed."""

    def find(self, key: str) -> Path | None: ...

    def workspace(self) -> AbstractContextManager[Path]: ...

    def keep(self, key: str, workspace: Path) -> Path: ...

    def lock(
        self, key: str, *, cancel: threading.Event, timeout: float = ...
    ) -> AbstractContextManager[object]: ...

    def remove(self, key: str) -> bool: ...
