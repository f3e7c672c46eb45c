"""From an image spec to an image that is ready, once.

Runs in the endpoint process and in ``gc-apptainer``.

Guarantees:

- *Single flight.* However many requests for one spec digest arrive, from any thread,
  at most one build of it runs in this process, and between processes that share the
  cache at most one at a time (the store's lock); whoever waited takes the other's
  image.
- *No request is lost.* Every future returned by :meth:`ImageService.request` ends in
  a :class:`Ready` or in a :class:`~.errors.ContainerError`, also on :meth:`close`.
- :meth:`ImageService.cached` and :meth:`~ImageService.request` do not block on
  builds, processes or locks.
- *Sticky.* A spec's image stays what it is until a request says that it may be no
  older than so much, or asks for a new one; then names and versions are resolved anew.

An image is ready as soon as it is right; its Python bytecode follows in the background.

Non-guarantees: a failure is not remembered, so the next request builds again; an
image may be removed from the cache after it was reported ready.

States of a request, and the moves between them::

    REQUESTED ──► RESOLVING ──► BUILDING ──► READY
        │             │  └───────────────────▲  │
        └─────────────┴──────────┴──► FAILED    (another process built it)
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Order, Place
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import (
    BuildError,
    ContainerError,
    StoreError,
    internal,
)
from globus_compute_apptainer.images.completion import Completion, ImageBuilder
from globus_compute_apptainer.images.record import Seal, manifest_of
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.store.cache import IMAGE, Store, StoredImage

if TYPE_CHECKING:
    from globus_compute_apptainer.build.record.lock import Lock

log = logging.getLogger(__name__)

#: Requests that may wait for builds of other processes without holding up our own.
LOCK_WAITERS = 16
#: How many build timeouts to wait for another process before giving up on it.
LOCK_TIMEOUTS = 2
POLL_SECONDS = 0.1

CacheOutcome = Literal["hit", "built", "shared"]


class State(enum.Enum):
    """Where a request for an image stands."""

    REQUESTED = "requested"
    RESOLVING = "resolving"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.REQUESTED: frozenset({State.RESOLVING, State.FAILED}),
    State.RESOLVING: frozenset({State.BUILDING, State.READY, State.FAILED}),
    State.BUILDING: frozenset({State.READY, State.FAILED}),
    State.READY: frozenset(),
    State.FAILED: frozenset(),
}


@dataclass(frozen=True)
class Ready:
    """An image to run, and what it took to get it.

    :param cache: ``hit`` it was there; ``built`` this request's build made it;
        ``shared`` it was made, for another request, while this one waited
    :param seconds: wall-clock seconds of the build; 0.0 for a hit
    """

    image: StoredImage
    cache: CacheOutcome
    seconds: float = 0.0


@dataclass
class _Request:
    """One digest in flight, with everybody who waits for it.

    :param unwanted: digest of the image that is there and must not be taken
    """

    order: Order
    name: str
    unwanted: str | None = None
    state: State = State.REQUESTED
    waiting: list[Future[Ready]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def digest(self) -> str:
        return self.order.image.digest

    @property
    def key(self) -> str:
        """Who names all packages exactly is not given what others have made."""
        locked = self.order.locked
        return self.digest if locked is None else f"locked-{id(locked)}"

    def advance(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.state} cannot become {state}")
        self.state = state


class ImageService:
    """Images by spec, built when missing.

    :param store: the cache
    :param builder: makes the builder when it is first needed, so that a machine
        without Apptainer fails requests, not the endpoint's start
    :param config: scratch space and concurrency
    :param sink: receives the builds' events, from the builds' threads
    :param clock: seconds, monotonic
    :param now: UTC, for the age of images
    """

    def __init__(
        self,
        store: Store,
        builder: Callable[[], ImageBuilder],
        config: BuildConfig,
        *,
        sink: events.Sink = events.ignore,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._store, self._make_builder, self._config = store, builder, config
        self._sink, self._clock, self._now = sink, clock, now
        self._lock = threading.Lock()
        self._requests: dict[str, _Request] = {}
        self._builder: ImageBuilder | None = None
        self._built = self._failed = 0
        self._closing = threading.Event()
        self._slots = threading.Semaphore(config.concurrency)
        self._completion = Completion(store, self._the_builder, config, self._closing)
        self._threads = ThreadPoolExecutor(
            config.concurrency + LOCK_WAITERS, thread_name_prefix="image-build"
        )

    def cached(self, digest: str, *, max_age: float | None = None) -> Ready | None:
        """The image of a spec digest if it is in the cache now; cheap.

        A cache that cannot be read counts as a miss here: the request that follows
        reports why.

        :param max_age: seconds since it was made; None: any
        """
        try:
            found = self._store.lookup(digest)
        except StoreError:
            return None
        if found is None or self._too_old(found, max_age):
            return None
        self._completion.want(found)
        return Ready(found, "hit")

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
        :param max_age: seconds after which what is there counts as too old
        :param fresh: make it anew, with names and versions resolved anew
        :param locked: make it anew, of exactly this
        :returns: a future, ending in :class:`Ready` or :class:`~.errors.ContainerError`
        """
        future: Future[Ready] = Future()
        again = fresh or locked is not None
        alike = _Request(Order(image, locked=locked), name).key
        with self._lock:
            refusal: ContainerError | None = None
            known = self._requests.get(alike)
            if self._closing.is_set():
                refusal = _stopped()
            elif known is not None:
                known.waiting.append(future)
            else:
                unwanted = self._unwanted(image.digest, max_age, again=again)
                fresh = fresh or bool(unwanted and locked is None)
                order = Order(image, policy, fresh, locked)
                refusal = self._begin(_Request(order, name, unwanted, waiting=[future]))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def _unwanted(
        self, digest: str, max_age: float | None, *, again: bool
    ) -> str | None:
        """Digest of the image that is there, if it will not do."""
        if not again and max_age is None:
            return None
        try:
            found = self._store.lookup(digest)
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

    def _begin(self, request: _Request) -> ContainerError | None:
        """Have a thread serve a request; the error if there can be none."""
        try:
            self._threads.submit(self._serve, request)
        except RuntimeError as error:  # "can't start new thread"
            request.waiting = []  # it may yet be served, for nobody
            request.cancelled.set()
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

    def standing(self, digest: str) -> tuple[str, int] | None:
        """The state of the request for a spec's image, and how many wait for it; None
        if there is no request."""
        with self._lock:
            request = self._requests.get(digest)
            if request is None:
                return None
            return request.state.value, len(request.waiting)

    def stored(self) -> Iterator[StoredImage]:
        """The images that are in the cache."""
        return self._store.images()

    def cancel(self, digest: str) -> int:
        """Fail whoever waits for a spec's image, at once, and stop its build here.

        :returns: how many waited
        """
        with self._lock:
            request = self._requests.pop(digest, None)
            if request is None:
                return 0
            request.cancelled.set()
            waiting, request.waiting = request.waiting, []
        for future in waiting:
            future.set_exception(_cancelled())
        return len(waiting)

    def close(self) -> None:
        """Fail whoever still waits, at once; then stop the builds. Idempotent; blocks
        until the builds' processes are gone."""
        with self._lock:
            self._closing.set()
            left: list[Future[Ready]] = []
            for request in self._requests.values():
                request.cancelled.set()
                left += request.waiting
                request.waiting = []
        for future in left:
            future.set_exception(_stopped())
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._completion.close()

    def settle(self) -> None:
        """Block until the images that became ready are complete."""
        self._completion.settle()

    def _serve(self, request: _Request) -> None:
        started = self._clock()
        try:
            self._move(request, State.RESOLVING)
            image, built = self._obtain(request)
        except ContainerError as error:
            self._finish(request, error, self._clock() - started)
        except Exception as error:
            log.exception("building %s failed unexpectedly", request.digest)
            self._finish(request, internal(error), self._clock() - started)
        else:
            seconds = self._clock() - started
            mine: CacheOutcome = "built" if built else "shared"
            self._finish(request, Ready(image, mine, seconds), seconds)

    def _obtain(self, request: _Request) -> tuple[StoredImage, bool]:
        """The image and whether this call built it."""
        digest = request.digest
        self._store.prepare()
        # Who has it builds, for `timeout` at most, or waits for a slot to do so.
        patience = LOCK_TIMEOUTS * self._config.timeout
        with self._store.lock(digest, cancel=request.cancelled, timeout=patience):
            found = None if request.order.locked else self._store.lookup(digest)
            if found and found.manifest.image_digest != request.unwanted:
                return found, False
            with self._slot(request):
                self._move(request, State.BUILDING)
                return self._build(request), True

    @contextlib.contextmanager
    def _slot(self, request: _Request) -> Iterator[None]:
        """One of the builds that may run at once; waits for it."""
        while not self._slots.acquire(timeout=POLL_SECONDS):
            if request.cancelled.is_set():
                raise self._ended()
        try:
            if request.cancelled.is_set():
                raise self._ended()
            yield
        finally:
            self._slots.release()

    def _ended(self) -> ContainerError:
        return _stopped() if self._closing.is_set() else _cancelled()

    def _build(self, request: _Request) -> StoredImage:
        started = self._clock()
        log_path = self._store.log_path(request.digest)
        with (
            private_scratch(self._config) as scratch,
            self._store.workspace() as work,
        ):
            seal = Seal(work / IMAGE, request.cancelled)
            built = self._the_builder().build(
                request.order,
                Place(scratch, work / IMAGE, log_path),
                sink=self._tell,
                cancel=request.cancelled,
                finished=seal,
            )
            seconds = self._clock() - started
            manifest = manifest_of(
                request.order.image, built, seconds, log_path, request.name
            )
            return self._store.publish(
                work / IMAGE, manifest, sealed=seal.done, cancel=request.cancelled
            )

    def _the_builder(self) -> ImageBuilder:
        if self._builder is None:
            self._builder = self._make_builder()
        return self._builder

    def _tell(self, event: events.Event) -> None:
        try:
            self._sink(event)
        except Exception:
            log.exception("an event sink failed")

    def _move(self, request: _Request, state: State) -> None:
        with self._lock:
            request.advance(state)

    def _finish(
        self, request: _Request, outcome: Ready | ContainerError, seconds: float
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
        if isinstance(outcome, Ready):
            self._completion.want(outcome.image)
        code = outcome.code if isinstance(outcome, ContainerError) else ""
        self._tell(events.BuildFinished(request.digest, seconds, code))
        for position, future in enumerate(waiting):
            if isinstance(outcome, ContainerError):
                future.set_exception(outcome)
            elif position and outcome.cache == "built":
                future.set_result(Ready(outcome.image, "shared", outcome.seconds))
            else:
                future.set_result(outcome)


def _cancelled() -> BuildError:
    return BuildError(
        "the build of this image was cancelled",
        hint="submit the task again to have it built",
        code="build-cancelled",
    )


def _stopped() -> BuildError:
    return BuildError(
        "the endpoint stopped before the image was ready",
        hint="submit the task again once the endpoint is back",
        code="endpoint-stopped",
    )
