"""Images that workers complain of: looked into, and taken out if they are damaged.

Runs in the endpoint process. Many tasks may fail of one damaged image, and their
complaints arrive late, when another image is in its place already: what a complaint is
about is told by the file's state when the task was handed over, and an image is judged
once for all who complain of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.images.tiers import Tiers
from globus_compute_apptainer.store import integrity
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.index import State

log = logging.getLogger(__name__)

GOOD_SECONDS: Final = 600.0
"""An image that was found to be good is not read again for so long."""


class Repair:
    """Judges images of one store.

    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        store: Store,
        tiers: Tiers,
        closing: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._tiers, self._closing = store, tiers, closing
        self._clock = clock
        self._one_at_a_time = threading.Lock()
        self._good: dict[tuple[Path, State], float] = {}

    def is_mended(self, image: StoredImage) -> bool:
        """Whether it is worth to try again what failed with this image.

        True where the image was damaged, and is out of the way now, or where another
        one has taken its place since; False where nothing is wrong with it.

        :raises StoreError: it cannot be told
        """
        with self._one_at_a_time:
            now = self._tiers.lookup(image.manifest.spec_digest)
            if now is None or (now.path, now.state) != (image.path, image.state):
                return True
            seen = self._good.get((image.path, image.state))
            if seen is not None and self._clock() - seen < GOOD_SECONDS:
                return False
            return self._look_into(now)

    def _look_into(self, image: StoredImage) -> bool:
        health = self._store.examine(image, self._closing)
        if health.good:
            self._good = {(image.path, image.state): self._clock(), **self._young()}
            return False
        log.warning("%s is damaged: %s", image.path, health.image or health.bytecode)
        if not self._tiers.owns(image):
            self._tiers.reject(image)
        elif health.image:
            self._store.quarantine(image)
        else:
            try:
                integrity.drop_bytecode(image)
            except OSError as error:
                raise StoreError(f"cannot be mended: {error}") from error
        return True

    def _young(self) -> dict[tuple[Path, State], float]:
        oldest = self._clock() - GOOD_SECONDS
        return {key: seen for key, seen in self._good.items() if seen > oldest}
