"""A task in a container, with an eye on its image.

Runs in the endpoint process. From hand-over until its future ends, a task holds a
lease on its image, however long it waits in a batch queue. Where a worker finds the
image gone or cannot start it, the image is asked for again, or looked into, and the
task is run again, once; what fails then is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from globus_compute_apptainer.endpoint import upstream
from globus_compute_apptainer.images import ImageService, Ready

MISSING: Final = "image-missing"
NOT_STARTED: Final = "container-start-failed"

Attempt = Callable[[], "Future[Any]"]
"""Hands a task over; raises where that cannot be done."""


class Watched(Future[Any]):
    """What upstream is given for its own future: the last attempt's outcome."""

    executor_task_id: Any = None


class Watch:
    """The attempts of one task.

    :param attempt: makes the attempt with an image
    :param anew: calls what it is given with the image as it is now, or sees to the
        task's end itself
    """

    def __init__(
        self,
        images: ImageService,
        task_f: upstream.GCFuture,
        attempt: Callable[[Ready], Attempt],
        anew: Callable[[Callable[[Ready], None]], None],
    ) -> None:
        self._images, self._task_f = images, task_f
        self._attempt, self._anew = attempt, anew
        self._is_second = False

    def first(self, ready: Ready) -> Attempt:
        """A call that hands the task over, with the contract of upstream's ``_submit``;
        upstream may call it again where a node was lost."""
        attempt = self._attempt(ready)

        def begin() -> Watched:
            watched = Watched()
            if not self._begin(ready, attempt, watched):
                self._again(watched)
            return watched

        return begin

    def _begin(self, ready: Ready, attempt: Attempt, watched: Watched) -> bool:
        """False where the image is gone already."""
        lease = self._images.use(ready)
        if lease is None and not self._is_second:
            return False
        try:
            work = attempt()
        except BaseException:
            if lease is not None:
                lease.let_go()
            raise
        watched.executor_task_id = getattr(work, "executor_task_id", None)

        def done(work: Future[Any]) -> None:
            if lease is not None:
                lease.let_go()
            self._judge(work, ready, watched)

        work.add_done_callback(done)
        return True

    def _judge(self, work: Future[Any], ready: Ready, watched: Watched) -> None:
        code = "" if self._is_second else _complaint(work)
        if code == MISSING:
            self._again(watched)
        elif code == NOT_STARTED:

            def mended(answer: Future[bool]) -> None:
                if answer.result():
                    self._again(watched)
                else:
                    _pass_on(work, watched)

            self._images.mend(ready).add_done_callback(mended)
        else:
            _pass_on(work, watched)

    def _again(self, watched: Watched) -> None:
        self._is_second = True

        def hand_over(ready: Ready) -> None:
            self._begin(ready, self._attempt(ready), watched)
            self._task_f.executor_task_id = watched.executor_task_id

        self._anew(hand_over)


def _complaint(work: Future[Any]) -> str:
    if work.cancelled() or work.exception() is not None:
        return ""
    return upstream.error_code(work.result(), (MISSING, NOT_STARTED))


def _pass_on(work: Future[Any], watched: Watched) -> None:
    error = work.exception()
    if error is not None:
        watched.set_exception(error)
    else:
        watched.set_result(work.result())
