"""The heart: from an image spec to an image that is ready, once.

Runs in the endpoint process and in ``gc-apptainer``. Ties together what is wanted
(``spec``), how it is made (``build``) and where it is kept (``store``).

Guarantees:

- *Single flight.* However many requests for one spec digest arrive, from any thread,
  at most one build of it runs in this process, and between processes that share the
  cache at most one at a time (the store's lock); whoever waited takes the other's
  image.
- *No request is lost.* Every future returned by :meth:`ImageService.request` ends in
  a :class:`Ready` or in a :class:`~.errors.ContainerError`, also on :meth:`close`.
- :meth:`ImageService.cached` and :meth:`~ImageService.request` do not block on
  builds, processes or locks.

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
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from globus_compute_apptainer import __version__, events
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.builder import Builder, Built
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig, ContainersConfig
from globus_compute_apptainer.errors import (
    BuildError,
    ContainerError,
    StoreError,
    internal,
)
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.manifest import Manifest, platform_name

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


class ImageBuilder(Protocol):
    """What the service needs of :class:`~.build.builder.Builder`."""

    def build(
        self,
        image: ImageSpec,
        *,
        scratch: Path,
        log: Path,
        sink: events.Sink,
        cancel: threading.Event,
    ) -> Built: ...


@dataclass
class _Request:
    """One digest in flight, with everybody who waits for it."""

    image: ImageSpec
    name: str
    state: State = State.REQUESTED
    waiting: list[Future[Ready]] = field(default_factory=list)

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
    """

    def __init__(
        self,
        store: Store,
        builder: Callable[[], ImageBuilder],
        config: BuildConfig,
        *,
        sink: events.Sink = events.ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._make_builder, self._config = store, builder, config
        self._sink, self._clock = sink, clock
        self._lock = threading.Lock()
        self._requests: dict[str, _Request] = {}
        self._builder: ImageBuilder | None = None
        self._built = self._failed = 0
        self._closing = threading.Event()
        self._slots = threading.Semaphore(config.concurrency)
        self._threads = ThreadPoolExecutor(
            config.concurrency + LOCK_WAITERS, thread_name_prefix="image-build"
        )

    def cached(self, digest: str) -> Ready | None:
        """The image of a spec digest if it is in the cache now; cheap.

        A cache that cannot be read counts as a miss here: the request that follows
        reports why.
        """
        try:
            found = self._store.lookup(digest)
        except StoreError:
            return None
        return None if found is None else Ready(found, "hit")

    def request(self, image: ImageSpec, *, name: str = "") -> Future[Ready]:
        """Ask for an image; at most one build of it runs.

        :param name: what people call it; kept in the manifest
        :returns: a future that ends in :class:`Ready` or
            :class:`~.errors.ContainerError`
        """
        future: Future[Ready] = Future()
        with self._lock:
            refusal: ContainerError | None = None
            known = self._requests.get(image.digest)
            if self._closing.is_set():
                refusal = _stopped()
            elif known is not None:
                known.waiting.append(future)
            else:
                refusal = self._begin(_Request(image, name, waiting=[future]))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def _begin(self, request: _Request) -> ContainerError | None:
        """Have a thread serve a request; the error if there can be none."""
        try:
            self._threads.submit(self._serve, request)
        except RuntimeError as error:  # "can't start new thread"
            request.waiting = []  # it may yet be served, for nobody
            return internal(error)
        self._requests[request.image.digest] = request
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

    def close(self) -> None:
        """Fail whoever still waits, at once; then stop the builds. Idempotent; blocks
        until the builds' processes are gone."""
        with self._lock:
            self._closing.set()
            left: list[Future[Ready]] = []
            for request in self._requests.values():
                left += request.waiting
                request.waiting = []
        for future in left:
            future.set_exception(_stopped())
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _serve(self, request: _Request) -> None:
        started = self._clock()
        try:
            self._move(request, State.RESOLVING)
            image, built = self._obtain(request)
        except ContainerError as error:
            self._finish(request, error, self._clock() - started)
        except Exception as error:
            log.exception("building %s failed unexpectedly", request.image.digest)
            self._finish(request, internal(error), self._clock() - started)
        else:
            seconds = self._clock() - started
            mine: CacheOutcome = "built" if built else "shared"
            self._finish(request, Ready(image, mine, seconds), seconds)

    def _obtain(self, request: _Request) -> tuple[StoredImage, bool]:
        """The image and whether this call built it."""
        digest = request.image.digest
        self._store.prepare()
        # Who has it builds, for `timeout` at most, or waits for a slot to do so.
        patience = LOCK_TIMEOUTS * self._config.timeout
        with self._store.lock(digest, cancel=self._closing, timeout=patience):
            found = self._store.lookup(digest)
            if found is not None:
                return found, False
            with self._slot():
                self._move(request, State.BUILDING)
                return self._build(request), True

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        """One of the builds that may run at once; waits for it."""
        while not self._slots.acquire(timeout=POLL_SECONDS):
            if self._closing.is_set():
                raise _stopped()
        try:
            if self._closing.is_set():
                raise _stopped()
            yield
        finally:
            self._slots.release()

    def _build(self, request: _Request) -> StoredImage:
        image, started = request.image, self._clock()
        if self._builder is None:
            self._builder = self._make_builder()
        log_path = self._store.log_path(image.digest)
        with private_scratch(self._config) as scratch:
            built = self._builder.build(
                image,
                scratch=scratch,
                log=log_path,
                sink=self._tell,
                cancel=self._closing,
            )
            seconds = self._clock() - started
            manifest = _manifest(request, built, seconds, str(log_path))
            return self._store.publish(built.sif, manifest, cancel=self._closing)

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
            if self._requests.get(request.image.digest) is request:
                del self._requests[request.image.digest]
            waiting, request.waiting = request.waiting, []
            self._failed += failed
            self._built += isinstance(outcome, Ready) and outcome.cache == "built"
        code = outcome.code if isinstance(outcome, ContainerError) else ""
        self._tell(events.BuildFinished(request.image.digest, seconds, code))
        for position, future in enumerate(waiting):
            if isinstance(outcome, ContainerError):
                future.set_exception(outcome)
            elif position and outcome.cache == "built":
                future.set_result(Ready(outcome.image, "shared", outcome.seconds))
            else:
                future.set_result(outcome)


def open_service(
    config: ContainersConfig,
    environ: Mapping[str, str],
    sink: events.Sink = events.ignore,
) -> ImageService:
    """The service that a configuration describes; touches nothing until asked.

    :param environ: what builds take the site's index and proxy settings from
    """

    def builder() -> Builder:
        apptainer = Apptainer.find(config.apptainer)
        return Builder(
            apptainer, config.build, SiteAccess.from_host(environ, config.build)
        )

    return ImageService(Store(config.cache_dir), builder, config.build, sink=sink)


def _manifest(
    request: _Request, built: Built, seconds: float, log_path: str
) -> Manifest:
    image, probe = request.image, built.probe
    return Manifest(
        spec_digest=image.digest,
        image_digest="",
        size=0,
        spec=json.loads(image.canonical()),
        base=built.base,
        base_digest=built.base_digest,
        python=probe.python,
        python_version=probe.python_version,
        os=probe.os,
        packages=probe.packages,
        platform=platform_name(),
        apptainer_version=built.apptainer_version,
        builder_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 3),
        stage_seconds=dict(built.stage_seconds),
        log=log_path,
        name=request.name,
    )


def _stopped() -> BuildError:
    return BuildError(
        "the endpoint stopped before the image was ready",
        hint="submit the task again once the endpoint is back",
        code="endpoint-stopped",
    )
