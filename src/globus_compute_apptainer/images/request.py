"""A request for an image: where it stands, who waits for it, what it ends in.

Runs in the endpoint process and in ``gc-apptainer``. States, and the moves between
them::

    REQUESTED ──► RESOLVING ◄──► BUILDING ──► READY
        │             │  └────────────────────▲
        └─────────────┴───────────┴──► FAILED

From RESOLVING straight to READY where another process built it meanwhile; from BUILDING
back where another process took the lock over.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from globus_compute_apptainer.build.order import Order
from globus_compute_apptainer.errors import BuildError, ContainerError
from globus_compute_apptainer.store.cache import StoredImage

T = TypeVar("T")
LOOK_SECONDS = 0.25

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
    State.BUILDING: frozenset({State.RESOLVING, State.READY, State.FAILED}),
    State.READY: frozenset(),
    State.FAILED: frozenset(),
}


@dataclass(frozen=True)
class Ready:
    """An image to run, and what it took to get it.

    :param cache: ``hit`` it was there; ``built`` this request's build made it;
        ``shared`` it was made for another request while this one waited, or is in
        one of ``shared_caches``
    :param seconds: wall-clock seconds of the build; 0.0 for a hit
    """

    image: StoredImage
    cache: CacheOutcome
    seconds: float = 0.0


@dataclass
class Request:
    """One digest in flight, with everybody who waits for it.

    :param number: of its arrival; who comes first is built first
    :param unwanted: digest of the image that is there and must not be taken
    :param max_age: seconds after which an image, or a failure, counts as too old
    :param cancel: set when nobody waits any more, or the service stops
    """

    order: Order
    name: str
    number: int = 0
    unwanted: str | None = None
    max_age: float | None = None
    state: State = State.REQUESTED
    waiting: list[Future[Ready]] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def digest(self) -> str:
        return self.order.image.digest

    @property
    def key(self) -> str:
        """Who names all packages exactly is not given what others have made."""
        locked = self.order.locked
        return self.digest if locked is None else f"locked-{id(locked)}"

    @property
    def forced(self) -> bool:
        """Whether it is to be tried, whatever became of it before."""
        return self.order.fresh or self.order.locked is not None

    def advance(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.state} cannot become {state}")
        self.state = state


def answer(future: Future[Ready], outcome: Ready | ContainerError) -> None:
    """Unless nobody wants to know any more."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, ContainerError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def cancelled() -> BuildError:
    """For those who wait for an image that somebody cancels."""
    return BuildError(
        "the build of this image was cancelled",
        hint="submit the task again to have it built",
        code="build-cancelled",
    )


def stopped() -> BuildError:
    """For those who wait when the service is closed."""
    return BuildError(
        "the endpoint stopped before the image was ready",
        hint="submit the task again once the endpoint is back",
        code="endpoint-stopped",
    )


def outcome(future: Future[T]) -> T:
    """What a future ends in; for a main thread that signals shall interrupt.

    A signal that comes just before a wait without end is noticed at its end only.
    """
    while not wait([future], LOOK_SECONDS).done:
        pass
    return future.result()
