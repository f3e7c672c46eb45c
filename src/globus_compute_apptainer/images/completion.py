"""Making ready images complete: their Python bytecode, compiled in the background.

Runs in the endpoint process and in ``gc-apptainer``. An image is ready without it,
and slower to import from; a container that starts later has it laid over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Built, Order, Place
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.store.cache import BYTECODE, Store, StoredImage

log = logging.getLogger(__name__)


class ImageBuilder(Protocol):
    """What this package needs of :class:`~..build.builder.Builder`."""

    def build(
        self,
        order: Order,
        place: Place,
        *,
        sink: events.Sink,
        cancel: threading.Event,
        finished: Callable[[], None] = ...,
    ) -> Built: ...

    def compile_bytecode(
        self,
        image: Path,
        python: str,
        target: Path,
        *,
        scratch: Path,
        cancel: threading.Event,
    ) -> bool: ...


class Completion:
    """Completes images one after the other, each at most once in this process.

    What fails is logged and left: the image works without.
    """

    def __init__(
        self,
        store: Store,
        builder: Callable[[], ImageBuilder],
        config: BuildConfig,
        closing: threading.Event,
    ) -> None:
        self._store, self._builder, self._config = store, builder, config
        self._closing = closing
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._running: set[Future[None]] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="image-completion")

    def want(self, image: StoredImage) -> None:
        """Complete ``image`` sometime soon, if it is not; returns at once."""
        digest = image.manifest.image_digest
        if digest in self._asked or not _lacks_bytecode(image):
            return
        with self._lock:
            if digest in self._asked or self._closing.is_set():
                return
            self._asked.add(digest)
            try:
                future = self._threads.submit(self._complete, image)
            except RuntimeError:  # no thread can be had, or closed meanwhile
                return
            self._running.add(future)
            future.add_done_callback(self._running.discard)

    def settle(self) -> None:
        """Block until all that was wanted is done."""
        wait(set(self._running))

    def close(self) -> None:
        """Block until what runs has ended; ``closing`` must be set."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _complete(self, image: StoredImage) -> None:
        try:
            with (
                private_scratch(self._config) as scratch,
                self._store.workspace() as work,
            ):
                target = work / BYTECODE
                done = self._builder().compile_bytecode(
                    image.path,
                    str(image.manifest.python),
                    target,
                    scratch=scratch,
                    cancel=self._closing,
                )
                if done:
                    self._store.attach(image, target)
        except (ContainerError, OSError) as error:
            log.warning("no bytecode for %s: %s", image.path, error)
        except Exception:
            log.exception("no bytecode for %s", image.path)


def _lacks_bytecode(image: StoredImage) -> bool:
    """Flat images are for hosts that show no layers, so they have it inside."""
    made = {str(layer.get("kind")) for layer in image.manifest.layers}
    layered = image.manifest.strategy == "layered"
    has_python = image.manifest.python is not None and bool(made & {"pip", "conda"})
    return layered and has_python and image.bytecode is None
