"""A task in a container, with an eye on its image.

Runs in the endpoint process. From hand-over until its future ends, a task holds a
lease on its image, however long it waits in a batch queue. Where a worker finds the
image gone or cannot start it, the image is asked for again, or looked into, and the
task is run again, once; what fails then is the task's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.endpoint.requests import Wanted
from globus_compute_apptainer.images import ImageService, Ready

if TYPE_CHECKING:
    from globus_compute_apptainer.store.leases import Lease

MISSING: Final = "image-missing"
NOT_STARTED: Final = "container-start-failed"
_COMPLAINTS: Final = {code.encode(): code for code in (MISSING, NOT_STARTED)}


class Asked(NamedTuple):
    """A task as it was submitted, and what its spec asks for."""

    task_f: upstream.GCFuture
    packed_task: bytes
    resource_specification: dict[str, Any]
    result_serializers: list[str] | None
    wanted: Wanted


@dataclass(frozen=True)
class Means:
    """What all tasks of an engine share.

    :param tell: what a worker is told of a task, to run it in an image
    :param attempt: hands a task over with that; raises where it cannot
    :param anew: calls what it is given with the image as it is now, or sees to the
        task's end itself
    :param retries: how often an attempt that came to nothing is repeated
    :param failure: the packed ``Result`` of a task that was begun at a time, in
        nanoseconds, and whose attempts raised these
    """

    images: ImageService
    tell: Callable[[Asked, Ready], str]
    attempt: Callable[[Asked, str], Future[Any]]
    anew: Callable[[Asked, Callable[[Ready], None]], None]
    retries: Callable[[], int]
    failure: Callable[[Asked, int, Sequence[Exception]], bytes]


class Watch:
    """The attempts of one task, until its future has its result. They are repeated
    where Parsl fails, as upstream's ``_invoke_submission`` repeats them. To call it
    tells it that Parsl's future has ended.

    Thousands of tasks may wait at a time, and the collector of garbage looks at all
    that each of them holds: so there is little of it.

    :param ready: the image as it was found
    """

    __slots__ = (
        *("_asked", "_began", "_failures", "_is_second", "_lease", "_means", "_ready"),
        "_told",
    )

    def __init__(self, means: Means, asked: Asked, ready: Ready) -> None:
        self._means, self._asked = means, asked
        self._ready, self._told = ready, means.tell(asked, ready)
        self._began, self._is_second = 0, False
        self._lease: Lease | None = None
        self._failures: tuple[Exception, ...] = ()

    def begin(self) -> None:
        """Make an attempt."""
        self._began = time.time_ns()
        self._lease = self._means.images.use(self._ready)
        if self._lease is None and not self._is_second:  # the image is gone already
            self._again()
            return
        try:
            done = self._means.attempt(self._asked, self._told)
        except BaseException as error:
            self._let_go()
            if not isinstance(error, Exception):
                raise
            self._failed(error)
        else:
            done.add_done_callback(self)

    def __call__(self, done: Future[Any]) -> None:
        self._let_go()
        code = "" if self._is_second else _complaint(done)
        if code == MISSING:
            self._again()
        elif code == NOT_STARTED:

            def mended(answer: Future[bool]) -> None:
                if answer.result():
                    self._again()
                else:
                    self._end(done)

            self._means.images.mend(self._ready).add_done_callback(mended)
        else:
            self._end(done)

    def _again(self) -> None:
        self._is_second = True
        self._means.anew(self._asked, self._resume)

    def _resume(self, ready: Ready) -> None:
        self._ready, self._told = ready, self._means.tell(self._asked, ready)
        self.begin()

    def _end(self, done: Future[Any]) -> None:
        try:
            packed = done.result()
        except Exception as error:  # noqa: BLE001  # Parsl's, whatever it is
            self._failed(error)
        else:
            self._answer(packed)

    def _failed(self, error: Exception) -> None:
        self._failures = (*self._failures, error)
        if len(self._failures) <= self._means.retries():
            self.begin()
        else:
            self._answer(self._means.failure(self._asked, self._began, self._failures))

    def _answer(self, packed: bytes) -> None:
        if not self._asked.task_f.done():  # by whoever cancelled it
            self._asked.task_f.set_result(packed)

    def _let_go(self) -> None:
        if self._lease is not None:
            self._lease.let_go()
            self._lease = None


def _complaint(done: Future[Any]) -> str:
    try:
        packed = done.result()
    except BaseException:  # noqa: BLE001  # it is passed on as it is
        return ""
    return upstream.error_code(packed, _COMPLAINTS)
