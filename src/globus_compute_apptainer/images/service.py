"""From an image spec to an image that is ready, once.

Runs in the endpoint process and in ``gc-apptainer``. The states of a request are drawn
in :mod:`.request`.

Guarantees:

- *Single flight.* However many requests for one spec digest arrive, from any thread,
  at most one build of it runs in this process, and between processes and machines that
  share the cache at most one at a time (the store's lock); whoever waited takes the
  other's image, or its failure, and sees its progress meanwhile.
- *No request is lost.* Every future returned by :meth:`ImageService.request` ends in
  a :class:`Ready` or in a :class:`~.errors.ContainerError`, also on :meth:`close`,
  unless it is cancelled. When all who wait have cancelled, the build is stopped.
- :meth:`ImageService.cached` and :meth:`~ImageService.request` do not block on
  builds, processes or locks.
- *Sticky.* A spec's image stays what it is until a request says that it may be no
  older than so much, or asks for a new one; then names and versions are resolved anew.
- *First come, first built*, in one process; all who wait for one spec have one place.

An image is ready as soon as it is right; its Python bytecode follows in the background.
Failures are remembered for a while, see :mod:`.memory`. An image may be removed from
the cache after it was reported ready, unless it is in use (:meth:`ImageService.use`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Order
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import (
    ContainerError,
    StoreError,
    internal,
)
from globus_compute_apptainer.images.care import Care
from globus_compute_apptainer.images.completion import Completion, ImageBuilder
from globus_compute_apptainer.images.making import Maker
from globus_compute_apptainer.images.memory import Memory
from globus_compute_apptainer.images.repair import Repair
from globus_compute_apptainer.images.request import (
    Ready,
    Request,
    State,
    answer,
    cancelled,
    stopped,
)
from globus_compute_apptainer.images.tiers import Tiers
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.failures import Failures

if TYPE_CHECKING:
    from globus_compute_apptainer.build.record.lock import Lock
    from globus_compute_apptainer.store.leases import Lease

log = logging.getLogger(__name__)

#: Requests that may wait for builds of other processes without holding up our own.
LOCK_WAITERS = 16


class ImageService:
    """Images by spec, built when missing.

    :param store: the cache
    :param builder: makes the builder when it is first needed, so that a machine
        without Apptainer fails requests, not the endpoint's start
    :param config: scratch space and concurrency
    :param shared: caches that are looked into first and never written
    :param max_cache_size: bytes; after a build, what was not used for longest goes
    :param scope: tells whose failures are the same, see :class:`.memory.Memory`
    :param sink: receives the builds' events, from the builds' threads
    :param clock: seconds, monotonic
    :param now: UTC, for the age of images and failures
    """

    def __init__(
        self,
        store: Store,
        builder: Callable[[], ImageBuilder],
        config: BuildConfig,
        *,
        shared: Sequence[Store] = (),
        max_cache_size: int | None = None,
        scope: str = "",
        sink: events.Sink = events.ignore,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._store, self._care = store, Care(store, max_cache_size)
        self._sink, self._clock, self._now = sink, clock, now
        self._lock = threading.Lock()
        self._requests: dict[str, Request] = {}
        self._numbers = itertools.count(1)
        self._built = self._failed = 0
        self._closing = threading.Event()
        self._tiers = Tiers(store, shared)
        memory = Memory(Failures(store.top, store.platform), scope, now)
        build = self._builder  # the maker's, which begins with the completion
        self._completion = Completion(store, build, config, self._closing)
        self._maker = Maker(
            store,
            self._tiers,
            memory,
            config,
            builder,
            self._tell,
            self._move,
            self._completion,
            clock,
        )
        self._repair = Repair(store, self._tiers, self._closing)
        self._threads = ThreadPoolExecutor(
            config.concurrency + LOCK_WAITERS, thread_name_prefix="image-build"
        )

    def cached(self, digest: str, *, max_age: float | None = None) -> Ready | None:
        """The image of a spec digest if it is in a cache now; cheap.

        A cache that cannot be read counts as a miss here: the request that follows
        reports why.

        :param max_age: seconds since it was made; None: any
        """
        try:
            found = self._tiers.lookup(digest)
        except StoreError:
            return None
        if found is None or self._too_old(found, max_age):
            return None
        if not self._tiers.owns(found):
            return Ready(found, "shared")
        self._completion.want(found)
        return Ready(found, "hit")

    def use(self, ready: Ready) -> Lease | None:
        """Keep an image from being removed until the lease is let go.

        :returns: None if it is gone already: ask for it again
        """
        return self._store.use(ready.image)

    def request(
        self,
        image: ImageSpec,
        *,
        name: str = "",
        policy: Policy | None = None,
        max_age: float | None = None,
        fresh: bool = False,
        locked: Lock | None = None,
    ) -> Future[Ready]:
        """Ask for an image; at most one build of it runs, that of the first request.

        :param name: what people call it; kept in the manifest
        :param policy: what the files of a payload may ask for; None: everything
        :param max_age: seconds after which what is there counts as too old, and a
            failure as forgotten
        :param fresh: make it anew, with names and versions resolved anew
        :param locked: make it anew, of exactly this
        :returns: a future, ending in :class:`Ready` or :class:`~.errors.ContainerError`
        """
        future: Future[Ready] = Future()
        again = fresh or locked is not None
        alike = Request(Order(image, locked=locked), name).key
        with self._lock:
            refusal: ContainerError | None = None
            request = self._requests.get(alike)
            if self._closing.is_set():
                refusal = stopped()
            elif request is not None:
                request.waiting.append(future)
            else:
                unwanted = self._unwanted(image.digest, max_age, again=again)
                fresh = fresh or bool(unwanted and locked is None)
                order = Order(image, policy, fresh, locked)
                request = Request(order, name, next(self._numbers), unwanted, max_age)
                request.waiting.append(future)
                refusal = self._begin(request)
        if refusal is not None or request is None:
            future.set_exception(refusal)
        else:
            future.add_done_callback(functools.partial(self._left, request))
        return future

    def mend(self, ready: Ready) -> Future[bool]:
        """Have an image looked into that a container could not be started from.

        :returns: whether trying again is worth while, see :class:`.repair.Repair`;
            False also where that cannot be told
        """
        try:
            return self._threads.submit(self._is_mended, ready.image)
        except RuntimeError:  # closed, or no thread to be had
            told: Future[bool] = Future()
            told.set_result(False)
            return told

    def _is_mended(self, image: StoredImage) -> bool:
        try:
            return self._repair.is_mended(image)
        except StoreError as error:
            log.warning("%s cannot be looked into: %s", image.path, error)
            return False

    def _left(self, request: Request, future: Future[Ready]) -> None:
        """Somebody's future is done; a request that nobody waits for any more ends."""
        if not future.cancelled():
            return
        with self._lock:
            with contextlib.suppress(ValueError):  # it was being answered
                request.waiting.remove(future)
            if request.waiting or self._requests.get(request.key) is not request:
                return
            del self._requests[request.key]
            request.cancel.set()

    def _unwanted(
        self, digest: str, max_age: float | None, *, again: bool
    ) -> str | None:
        """Digest of the image that is there, if it will not do."""
        if not again and max_age is None:
            return None
        try:
            found = self._tiers.lookup(digest)
        except StoreError:
            return None  # the build that follows reports why
        if found is None or not (again or self._too_old(found, max_age)):
            return None
        return found.manifest.image_digest

    def _too_old(self, image: StoredImage, max_age: float | None) -> bool:
        if max_age is None:
            return False
        try:
            made = datetime.fromisoformat(image.manifest.created)
            return (self._now() - made).total_seconds() > max_age
        except (ValueError, TypeError):
            return True

    def _begin(self, request: Request) -> ContainerError | None:
        """Have a thread serve a request; the error if there can be none."""
        try:
            self._threads.submit(self._serve, request)
        except RuntimeError as error:  # "can't start new thread"
            request.waiting = []  # it may yet be served, for nobody
            return internal(error)
        self._requests[request.key] = request
        return None

    def counts(self) -> dict[str, int]:
        """Numbers for status reports: requests by state, tasks waiting, builds."""
        with self._lock:
            states = [request.state for request in self._requests.values()]
            waiting = sum(len(r.waiting) for r in self._requests.values())
            return {
                "queued": len(states) - states.count(State.BUILDING),
                "building": states.count(State.BUILDING),
                "waiting_tasks": waiting,
                "built": self._built,
                "failed": self._failed,
            }

    def _builder(self) -> ImageBuilder:
        return self._maker.builder()

    def standing(self, digest: str) -> tuple[str, int] | None:
        """The state of the request for a spec's image, and how many wait for it; None
        if there is no request."""
        with self._lock:
            request = self._requests.get(digest)
            if request is None:
                return None
            return request.state.value, len(request.waiting)

    def stored(self) -> Iterator[StoredImage]:
        """The images that are in the endpoint's own cache."""
        return self._store.images()

    def cancel(self, digest: str) -> int:
        """Fail whoever waits for a spec's image, at once, and stop its build here.

        :returns: how many waited
        """
        with self._lock:
            request = self._requests.pop(digest, None)
            if request is None:
                return 0
            request.cancel.set()
            waiting, request.waiting = request.waiting, []
        for future in waiting:
            answer(future, cancelled())
        return len(waiting)

    def close(self) -> None:
        """Fail whoever still waits, at once; then stop the builds. Idempotent; blocks
        until the builds' processes are gone."""
        with self._lock:
            self._closing.set()
            left: list[Future[Ready]] = []
            for request in self._requests.values():
                request.cancel.set()
                left += request.waiting
                request.waiting = []
        for future in left:
            answer(future, stopped())
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._completion.close()
        self._store.leases.close()

    def settle(self) -> None:
        """Block until the images that became ready are complete."""
        self._completion.settle()

    def _serve(self, request: Request) -> None:
        started = self._clock()
        lease = None
        try:
            self._move(request, State.RESOLVING)
            image, mine = self._maker.obtain(request)
            # Nobody who waits shall find it removed already.
            lease = self._store.use(image)
        except ContainerError as error:
            self._finish(request, error, self._clock() - started)
        except Exception as error:
            log.exception("building %s failed unexpectedly", request.digest)
            self._finish(request, internal(error), self._clock() - started)
        else:
            seconds = self._clock() - started
            self._finish(request, Ready(image, mine, seconds), seconds)
        if lease is not None:
            lease.let_go()
            if not self._closing.is_set():
                self._care.take()

    def _tell(self, event: events.Event) -> None:
        try:
            self._sink(event)
        except Exception:
            log.exception("an event sink failed")

    def _move(self, request: Request, state: State) -> None:
        with self._lock:
            request.advance(state)

    def _finish(
        self, request: Request, outcome: Ready | ContainerError, seconds: float
    ) -> None:
        failed = isinstance(outcome, ContainerError)
        with self._lock:
            request.advance(State.FAILED if failed else State.READY)
            # A request that no thread could be had for is served late, for nobody,
            # perhaps beside a younger one.
            if self._requests.get(request.key) is request:
                del self._requests[request.key]
            waiting, request.waiting = request.waiting, []
            self._failed += failed
            self._built += isinstance(outcome, Ready) and outcome.cache == "built"
        if isinstance(outcome, Ready) and self._tiers.owns(outcome.image):
            self._completion.want(outcome.image)
        code = outcome.code if isinstance(outcome, ContainerError) else ""
        self._tell(events.BuildFinished(request.digest, seconds, code))
        for position, future in enumerate(waiting):
            if position and isinstance(outcome, Ready) and outcome.cache == "built":
                answer(future, Ready(outcome.image, "shared", outcome.seconds))
            else:
                answer(future, outcome)
