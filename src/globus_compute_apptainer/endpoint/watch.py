"""A task in a container, with an eye on its image.

Runs in the endpoint process. From hand-over until its future ends, a task holds a
lease on its image, however long it waits in a batch queue. Where a worker finds the
image gone or cannot start it, the image is asked for again, or looked into, and the
task is run again, once; what fails then is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """

    images: ImageService
    tell: Callable[[Asked, Ready], str]
    attempt: Callable[[Asked, str], Future[Any]]
    anew: Callable[[Asked, Callable[[Ready], None]], None]


class Watch:
    """The attempts of one task. To call it is the first of them, with the contract of
    upstream's ``_submit``; upstream may call it again where a node was lost.

    Thousands of tasks may wait at a time, and the collector of garbage looks at all
    that each of them holds: so there is little of it.

    :param ready: the image as it was found
    """

    __slots__ = ("_asked", "_is_second", "_means", "_ready", "_told")

    def __init__(self, means: Means, asked: Asked, ready: Ready) -> None:
        self._means, self._asked, self._ready = means, asked, ready
        self._is_second, self._told = False, means.tell(asked, ready)

    def __call__(self) -> upstream.WorkFuture:
        attempt = _Attempt(self)
        if not self._begin(attempt, self._ready, self._told):
            self._again(attempt)
        return attempt

    def _begin(self, attempt: _Attempt, ready: Ready, told: str) -> bool:
        """False where the image is gone already."""
        lease = self._means.images.use(ready)
        if lease is None and not self._is_second:
            return False
        try:
            done = self._means.attempt(self._asked, told)
        except BaseException:
            if lease is not None:
                lease.let_go()
            raise
        attempt.executor_task_id = getattr(done, "executor_task_id", None)
        attempt.lease, attempt.ready = lease, ready
        done.add_done_callback(attempt)
        return True

    def judge(self, attempt: _Attempt, ready: Ready, done: Future[Any]) -> None:
        """See what an attempt ended in."""
        code = "" if self._is_second else _complaint(done)
        if code == MISSING:
            self._again(attempt)
        elif code == NOT_STARTED:

            def mended(answer: Future[bool]) -> None:
                if answer.result():
                    self._again(attempt)
                else:
                    attempt.end(done)

            self._means.images.mend(ready).add_done_callback(mended)
        else:
            attempt.end(done)

    def _again(self, attempt: _Attempt) -> None:
        self._is_second = True

        def hand_over(ready: Ready) -> None:
            self._begin(attempt, ready, self._means.tell(self._asked, ready))
            self._asked.task_f.executor_task_id = attempt.executor_task_id

        self._means.anew(self._asked, hand_over)


class _Attempt(upstream.WorkFuture):
    """An attempt that upstream waits for, the second one included. To call it tells it
    that Parsl's future has ended."""

    __slots__ = ("_watch", "lease", "ready")

    lease: Lease | None
    ready: Ready

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __call__(self, done: Future[Any]) -> None:
        if self.lease is not None:
            self.lease.let_go()
        self._watch.judge(self, self.ready, done)


def _complaint(done: Future[Any]) -> str:
    try:
        packed = done.result()
    except BaseException:  # noqa: BLE001  # it is passed on as it is
        return ""
    return upstream.error_code(packed, _COMPLAINTS)
