"""The caches of an endpoint: those of the site, which are only read, and its own.

Runs in the endpoint process and in ``gc-apptainer``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.index import State

log = logging.getLogger(__name__)


class Tiers:
    """Look-ups through all caches: the site's first, unless the own image is as young:
    somebody asked for it.

    Nothing is ever written to a cache of the site, not even a lease: who looks after
    it sees to it that images stay there for as long as they are used.
    """

    def __init__(self, own: Store, shared: Sequence[Store] = ()) -> None:
        self._own, self._shared = own, shared
        self._unreadable: set[Path] = set()
        self._damaged: set[tuple[Path, State]] = set()

    def lookup(self, spec_digest: str) -> StoredImage | None:
        """The image of a spec.

        :raises StoreError: the own cache is there but cannot be read
        """
        for store in self._shared:
            found = self._look(store, spec_digest)
            if found is not None:
                own = self._own.lookup(spec_digest)
                newer = own and own.manifest.created >= found.manifest.created
                return own if newer else found
        return self._own.lookup(spec_digest)

    def owns(self, image: StoredImage) -> bool:
        """Whether an image is in the own cache, and not in one of the site's."""
        return image.path.is_relative_to(self._own.top)

    def reject(self, image: StoredImage) -> None:
        """Never again hand out an image of the site that is damaged."""
        log.error("%s is damaged; its keeper has to remove it", image.path)
        self._damaged.add((image.path, image.state))

    def _look(self, store: Store, spec_digest: str) -> StoredImage | None:
        try:
            found = store.lookup(spec_digest)
        except StoreError as error:
            if store.root not in self._unreadable:
                log.warning("a shared cache is passed over: %s", error)
            self._unreadable.add(store.root)
            return None
        damaged = found and (found.path, found.state) in self._damaged
        return None if damaged else found
