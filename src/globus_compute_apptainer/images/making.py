"""Making the image of one request: alone, when it is its turn, and once.

Runs in the endpoint process and in ``gc-apptainer``, in the threads of an
:class:`.service.ImageService`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Place
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import (
    ContainerError,
    StoreError,
    is_full,
    is_refused,
)
from globus_compute_apptainer.images.completion import Completion, ImageBuilder
from globus_compute_apptainer.images.memory import Memory
from globus_compute_apptainer.images.record import Seal, manifest_of
from globus_compute_apptainer.images.relay import Listener, Teller
from globus_compute_apptainer.images.request import CacheOutcome, Request, State
from globus_compute_apptainer.images.slots import Slots
from globus_compute_apptainer.images.tiers import Tiers
from globus_compute_apptainer.store import files
from globus_compute_apptainer.store.cache import IMAGE, Store, StoredImage
from globus_compute_apptainer.store.locks import Held
from globus_compute_apptainer.store.room import PACKAGES

log = logging.getLogger(__name__)

#: How many build timeouts to wait for another process before giving up on it.
LOCK_TIMEOUTS = 2


class Maker:
    """Makes images, or takes those that others made meanwhile.

    :param builder: makes the builder when it is first needed
    :param move: takes a request from one state to the next
    :param completion: begins with the bytecode of what is being made
    """

    def __init__(
        self,
        store: Store,
        tiers: Tiers,
        memory: Memory,
        config: BuildConfig,
        builder: Callable[[], ImageBuilder],
        sink: events.Sink,
        move: Callable[[Request, State], None],
        completion: Completion,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._tiers, self._memory = store, tiers, memory
        self._config, self._make_builder, self._sink = config, builder, sink
        self._move, self._clock = move, clock
        self._completion = completion
        self._slots = Slots(config.concurrency)
        self._builder: ImageBuilder | None = None

    def builder(self) -> ImageBuilder:
        """:raises ContainerError: there can be none on this machine"""
        if self._builder is None:
            self._builder = self._make_builder()
        return self._builder

    def obtain(self, request: Request) -> tuple[StoredImage, CacheOutcome]:
        """The image, and how it was come by."""
        self._store.prepare()
        try:
            return self._locked(request)
        except StoreError as error:
            if error.code != "lock-lost":
                raise
            log.warning("building %s once more: %s", request.digest, error)
            self._move(request, State.RESOLVING)
            return self._locked(request)

    def _locked(self, request: Request) -> tuple[StoredImage, CacheOutcome]:
        # Who has it builds, for `timeout` at most, or waits for a slot to do so.
        patience = LOCK_TIMEOUTS * self._config.timeout
        if not request.forced:
            self._recall(request)
        with self._store.lock(
            request.digest,
            cancel=request.cancel,
            timeout=patience,
            watch=Listener(request.digest, self._sink),
        ) as held:
            if request.order.locked is None:
                found = self._tiers.lookup(request.digest)
                if found and found.manifest.image_digest != request.unwanted:
                    return found, "shared"
            if not request.forced:
                self._recall(request)  # of another process, while this one waited
            with self._slot(request):
                self._move(request, State.BUILDING)
                return self._remembered(request, held), "built"

    def _recall(self, request: Request) -> None:
        known = self._memory.recall(request.digest, request.max_age)
        if known is not None:
            raise known

    @contextlib.contextmanager
    def _slot(self, request: Request) -> Iterator[None]:
        """One of the builds that may run at once; waits for it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._slots.one(request.number, request.cancel))
            if (count := self._config.cache_concurrency) is not None:
                stack.enter_context(self._store.slot(count, cancel=request.cancel))
            yield

    def _remembered(self, request: Request, held: Held) -> StoredImage:
        try:
            image = self._build(request, held)
        except ContainerError as error:
            self._memory.remember(request.digest, error)
            raise
        except OSError as error:
            if not (is_full(error) or is_refused(error)):
                raise
            raise files.store_error(error, self._store.root) from error
        self._memory.forget(request.digest)
        return image

    def _build(self, request: Request, held: Held) -> StoredImage:
        started = self._clock()
        log_path = self._store.log_path(request.digest)
        with (
            self._store.leases.building(),
            private_scratch(self._config) as scratch,
            self._store.workspace() as work,
            self._completion.beside() as (bytecode, begin_bytecode),
        ):
            self._store.leases.use(PACKAGES)
            seal = Seal(work / IMAGE, request.cancel)
            built = self.builder().build(
                request.order,
                Place(scratch, work / IMAGE, log_path),
                sink=Teller(held, self._sink),
                cancel=request.cancel,
                finished=seal,
                layered=begin_bytecode,
            )
            seconds = self._clock() - started
            manifest = manifest_of(
                request.order.image, built, seconds, log_path, request.name
            )
            held.check()
            image = self._store.publish(
                work / IMAGE, manifest, sealed=seal.done, cancel=request.cancel
            )
            bytecode.image = image
            return image
