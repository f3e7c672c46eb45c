"""Making images complete: their Python bytecode, compiled in the background.

Runs in the endpoint process and in ``gc-apptainer``. An image is ready without it,
and slower to import from; a container that starts later has it laid over. It is begun
while the image is still being made (:class:`Beside`), or else once the image is wanted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, Protocol

from globus_compute_apptainer import events
from globus_compute_apptainer.build.layer import lacks_bytecode
from globus_compute_apptainer.build.order import Built, Compile, Order, Place
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.pieces import Known
from globus_compute_apptainer.store.cache import BYTECODE, Store, StoredImage

log = logging.getLogger(__name__)

SCRATCH_BYTES: Final = 1024**3
"""Room asked for beside a build: what is compiled, before it is packed."""


class ImageBuilder(Protocol):
    """What this package needs of :class:`~..build.builder.Builder`."""

    def build(
        self,
        order: Order,
        place: Place,
        *,
        sink: events.Sink,
        cancel: threading.Event,
        finished: Callable[[Known], None] = ...,
        layered: Callable[[Compile], None] = ...,
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


class Beside:
    """The bytecode of one image that is being made.

    :ivar image: whose it is, to be set once the image is there
    :ivar file: it, once it is there; in a workspace that ends with :meth:`close`
    """

    def __init__(self, store: Store, config: BuildConfig) -> None:
        self._store, self._config = store, config
        self._cancel = threading.Event()
        self._stack = contextlib.ExitStack()
        self.image: StoredImage | None = None
        self.file: Path | None = None

    def is_of(self, digest: str) -> bool:
        """Whether it belongs to the image with this digest."""
        return self.image is not None and self.image.manifest.image_digest == digest

    def cancel(self) -> None:
        """End it, whenever it is."""
        self._cancel.set()

    def run(self, compile_layers: Compile) -> None:
        """Compile; what fails is logged."""
        if self._cancel.is_set():
            return
        with _failures_logged("an image in the making"):
            work = self._stack.enter_context(self._store.workspace())
            with private_scratch(self._config, need=SCRATCH_BYTES) as scratch:
                target = work / BYTECODE
                if compile_layers(target, scratch, self._cancel):
                    self.file = target

    def close(self) -> None:
        """Remove what is left; after :meth:`run`."""
        self._stack.close()


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
        self._begun: set[Beside] = set()
        self._running: set[Future[None]] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="image-completion")

    def want(self, image: StoredImage) -> None:
        """Complete ``image`` sometime soon, if it is not; returns at once."""
        digest = image.manifest.image_digest
        if not self._needs(image):
            return
        with self._lock:
            if digest in self._asked or self._closing.is_set():
                return
            self._asked.add(digest)
            future = self._submit(self._complete, image)
            if future is not None:
                self._running.add(future)
                future.add_done_callback(self._running.discard)

    @contextlib.contextmanager
    def beside(self) -> Iterator[tuple[Beside, Callable[[Compile], None]]]:
        """While an image is being made: where its bytecode will be, and what begins
        with it. It ends with this, unless the image lacks it then."""
        one = Beside(self._store, self._config)

        def begin(compile_layers: Compile) -> None:
            with self._lock:
                if not self._closing.is_set():
                    self._begun.add(one)
                    self._submit(one.run, compile_layers)

        try:
            yield one, begin
        finally:
            if not self._needs(one.image):
                self._drop(one)

    def _needs(self, image: StoredImage | None) -> bool:
        """Whether it is to be completed, and nobody has asked for that yet."""
        if image is None or image.manifest.image_digest in self._asked:
            return False
        return _lacks_bytecode(image)

    def settle(self) -> None:
        """Block until all that was wanted is done."""
        wait(set(self._running))

    def close(self) -> None:
        """Block until what runs has ended; ``closing`` must be set."""
        with self._lock:
            begun = set(self._begun)
        for one in begun:
            one.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for one in begun:
            one.close()

    def _submit(
        self, task: Callable[..., None], *arguments: object
    ) -> Future[None] | None:
        try:
            return self._threads.submit(task, *arguments)
        except RuntimeError:  # no thread can be had, or closed meanwhile
            return None

    def _drop(self, one: Beside) -> None:
        """Tasks run one after the other: then it has ended."""
        one.cancel()
        if one in self._begun:
            self._submit(self._close, one)

    def _close(self, one: Beside) -> None:
        self._begun.discard(one)
        one.close()

    def _complete(self, image: StoredImage) -> None:
        # Begun before, so it has ended.
        digest = image.manifest.image_digest
        begun = [one for one in set(self._begun) if one.is_of(digest)]
        with _failures_logged(str(image.path)):
            file = next((one.file for one in begun if one.file is not None), None)
            if file is not None:
                self._store.attach(image, file)
            else:
                self._compile(image)
        for one in begun:
            self._close(one)

    def _compile(self, image: StoredImage) -> None:
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


@contextlib.contextmanager
def _failures_logged(what: str) -> Iterator[None]:
    try:
        yield
    except (ContainerError, OSError) as error:
        log.warning("no bytecode for %s: %s", what, error)
    except Exception:
        log.exception("no bytecode for %s", what)


def _lacks_bytecode(image: StoredImage) -> bool:
    """Flat images are for hosts that show no layers, so they have it inside."""
    manifest = image.manifest
    told = (
        (str(layer.get("kind")), bool(layer.get("bytecode")))
        for layer in manifest.layers
    )
    able = manifest.strategy == "layered" and manifest.python is not None
    return able and image.bytecode is None and lacks_bytecode(told)
