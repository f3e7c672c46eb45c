"""What was looked up a moment ago, for the next task with the same spec.

Runs in the endpoint process. To look whether an image is in the cache takes some
requests to a file system that a whole site may share; a thousand tasks a second with
one spec need one look.

Guaranteed: an image that is named here was there, and the newest, at some time in the
last :data:`SECONDS`, unless it was forgotten. Not guaranteed: that it is there still.
Who runs it takes a lease, and asks anew where that says that it is gone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.order import container_order
from globus_compute_apptainer.endpoint.requests import Wanted
from globus_compute_apptainer.images import ImageService, Ready
from globus_compute_apptainer.spec.model import RunSpec
from globus_compute_apptainer.worker.order import ContainerOrder
from globus_compute_apptainer.worker.terms import Terms

SECONDS: Final = 0.25
REMEMBERED: Final = 512

Serializers = Sequence[str] | None


class Recent:
    """Images by spec digest, and what workers are told of them. Safe for threads.

    :param terms: of a task that runs in a container, by that container's order and by
        the serializers of the result; always the same for the same
    :param clock: seconds, monotonic
    """

    def __init__(
        self,
        images: ImageService,
        config: ContainersConfig,
        terms: Callable[[ContainerOrder, Serializers], Terms],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images, self._config, self._clock = images, config, clock
        self._terms = terms
        self._lock = threading.Lock()
        self._looked: OrderedDict[str, tuple[float, Ready]] = OrderedDict()
        self._told: OrderedDict[
            tuple[str, RunSpec, tuple[str, ...]], tuple[Ready, str]
        ] = OrderedDict()

    def cached(self, wanted: Wanted) -> Ready | None:
        """As :meth:`.ImageService.cached`."""
        digest, now = wanted.image.digest, self._clock()
        with self._lock:
            since, known = self._looked.get(digest, (0.0, None))
        if known is not None and wanted.max_age is None and now - since <= SECONDS:
            return known
        ready = self._images.cached(digest, max_age=wanted.max_age)
        with self._lock:
            self._looked.pop(digest, None)
            if ready is not None:
                _remember(self._looked, digest, (now, ready))
        return ready

    def forget(self, wanted: Wanted) -> None:
        """Look anew the next time: what was there is gone, or there is a newer one."""
        with self._lock:
            self._looked.pop(wanted.image.digest, None)

    def terms(self, ready: Ready, wanted: Wanted, serializers: Serializers) -> str:
        """What a worker is told of a task, in its form for the wire."""
        key = (wanted.image.digest, wanted.run, tuple(serializers or ()))
        with self._lock:
            known, told = self._told.get(key, (None, ""))
        if known is not ready:
            order = container_order(ready, wanted.run, self._config)
            told = self._terms(order, serializers).to_wire()
            with self._lock:
                _remember(self._told, key, (ready, told))
        return told


def _remember(memory: OrderedDict[Any, Any], key: object, value: object) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
