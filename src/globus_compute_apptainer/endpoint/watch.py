"""A task in a container, with an eye on its image.

Runs in the endpoint process. From hand-over until its future ends, a task holds a
lease on its image, however long it waits in a batch queue. Where a worker finds the
image gone or cannot start it, the image is asked for again, or looked into, and the
task is run again, once; what fails then is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.images import ImageService, Ready

if TYPE_CHECKING:
    from globus_compute_apptainer.store.leases import Lease

MISSING: Final = "image-missing"
NOT_STARTED: Final = "container-start-failed"

Attempt = Callable[[], "Future[Any]"]
"""Hands a task over; raises where that cannot be done."""


class Watch:
    """The attempts of one task. To call it is the first of them, with the contract of
    upstream's ``_submit``; upstream may call it again where a node was lost.

    Thousands of tasks may wait at a time, and the collector of garbage looks at all
    that each of them holds: so there is little of it.

    :param ready: the image as it was found
    :param attempt: makes the attempt with an image; called at once for ``ready``
    :param anew: calls what it is given with the image as it is now, or sees to the
        task's end itself
    """

    __slots__ = (
        *("_anew", "_attempt", "_first", "_images", "_is_second", "_ready"),
        "_task_f",
    )

    def __init__(
        self,
        images: ImageService,
        task_f: upstream.GCFuture,
        ready: Ready,
        attempt: Callable[[Ready], Attempt],
        anew: Callable[[Callable[[Ready], None]], None],
    ) -> None:
        self._images, self._task_f, self._ready = images, task_f, ready
        self._attempt, self._anew = attempt, anew
        self._is_second, self._first = False, attempt(ready)

    def __call__(self) -> upstream.WorkFuture:
        work = upstream.WorkFuture()
        if not self._begin(work, self._ready, self._first):
            self._again(work)
        return work

    def _begin(self, work: upstream.WorkFuture, ready: Ready, attempt: Attempt) -> bool:
        """False where the image is gone already."""
        lease = self._images.use(ready)
        if lease is None and not self._is_second:
            return False
        try:
            done = attempt()
        except BaseException:
            if lease is not None:
                lease.let_go()
            raise
        work.executor_task_id = getattr(done, "executor_task_id", None)
        done.add_done_callback(_Judge(self, work, ready, lease))
        return True

    def judge(self, work: upstream.WorkFuture, ready: Ready, done: Future[Any]) -> None:
        """See what an attempt ended in."""
        code = "" if self._is_second else _complaint(done)
        if code == MISSING:
            self._again(work)
        elif code == NOT_STARTED:

            def mended(answer: Future[bool]) -> None:
                if answer.result():
                    self._again(work)
                else:
                    work.end(done)

            self._images.mend(ready).add_done_callback(mended)
        else:
            work.end(done)

    def _again(self, work: upstream.WorkFuture) -> None:
        self._is_second = True

        def hand_over(ready: Ready) -> None:
            self._begin(work, ready, self._attempt(ready))
            self._task_f.executor_task_id = work.executor_task_id

        self._anew(hand_over)


class _Judge:
    """What is called when an attempt has ended."""

    __slots__ = ("_lease", "_ready", "_watch", "_work")

    def __init__(
        self,
        watch: Watch,
        work: upstream.WorkFuture,
        ready: Ready,
        lease: Lease | None,
    ) -> None:
        self._watch, self._work, self._ready, self._lease = watch, work, ready, lease

    def __call__(self, done: Future[Any]) -> None:
        if self._lease is not None:
            self._lease.let_go()
        self._watch.judge(self._work, self._ready, done)


def _complaint(done: Future[Any]) -> str:
    if done.cancelled() or done.exception() is not None:
        return ""
    return upstream.error_code(done.result(), (MISSING, NOT_STARTED))
