"""What is done to the cache after an image was handed out, when nobody waits for it.

Runs in the endpoint process, in the threads of builds.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from globus_compute_apptainer.errors import StoreError

if TYPE_CHECKING:
    from globus_compute_apptainer.store.cache import Store

log = logging.getLogger(__name__)


class Care:
    """Removes what is old, and what there is no room for; what fails is logged.

    :param limit: bytes that the cache may take; None: any
    """

    def __init__(self, store: Store, limit: int | None) -> None:
        self._store, self._limit = store, limit
        self._lock = threading.Lock()

    def take(self) -> None:
        """Look after the cache once. Any number of threads may call this."""
        old = self._store.keep_up()
        if old.logs or old.locks:
            log.info(
                "%d old build logs, %d old locks were removed", old.logs, old.locks
            )
        if self._limit is not None:
            self._make_room(self._limit)

    def _make_room(self, limit: int) -> None:
        try:
            with self._lock:
                freed = self._store.make_room(limit)
        except StoreError as error:
            if error.code != "lock-timeout":  # somebody else is at it
                log.warning("no room can be made: %s", error)
            return
        if freed.things:
            log.info(
                "%d things of %d bytes were removed from the cache, %d bytes are left",
                len(freed.things),
                freed.size,
                freed.left,
            )
