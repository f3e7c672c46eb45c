"""The tasks that wait for an image: who gets their answers, here and after a restart.

Runs in the endpoint process. A task that waits is in the journal, so that the endpoint
process may be killed: the next one resubmits what it finds there.

Guarantees: a task that waits when this process dies is resubmitted by the next start
and answered, *at least* once: one that was being handed over at that moment may run
twice. A task that the service delivers again while it waits here joins itself, and does
not run twice. One that was there at the end of :data:`ATTEMPTS` processes ends in an
error.

Non-guarantees: a task handed to the executor is upstream's, and is lost with this
process as on the stock engine.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer.endpoint import journal, outbox, upstream
from globus_compute_apptainer.endpoint.journal import Entry, Journal
from globus_compute_apptainer.endpoint.outbox import Outbox
from globus_compute_apptainer.errors import ContainerError, internal

log = logging.getLogger(__name__)

#: How often a task is resubmitted before it counts as what brings the endpoint down.
ATTEMPTS: Final = 3

Submit = Callable[[upstream.GCFuture, bytes, dict[str, Any], "list[str] | None"], None]


def open_waiting(run_dir: Path, *, journaled: bool) -> WaitingTasks:
    """Those of an endpoint; touches nothing until asked.

    :param run_dir: the endpoint's directory, which is what upstream's interchange
        passes to an engine's ``start``
    """
    kept = Journal(run_dir / journal.FOLDER) if journaled else None
    return WaitingTasks(kept, Outbox(run_dir / outbox.FOLDER))


class WaitingTasks:
    """Safe between threads.

    :param kept: None: tasks do not outlive this process
    """

    def __init__(self, kept: Journal | None, results: Outbox) -> None:
        self._journal, self._outbox = kept, results
        self._lock = threading.Lock()
        self._waiting: dict[uuid.UUID, upstream.GCFuture] = {}
        # Resubmitted and unanswered: our own future, or that of a later delivery.
        self._resubmitted: dict[uuid.UUID, upstream.GCFuture] = {}

    def joined(self, task_f: upstream.GCFuture) -> bool:
        """Whether the same task is here already, from before: then the answer is
        ``task_f``'s, and nothing else is to be done with it."""
        if not self._waiting and not self._resubmitted:
            return False
        task_id = task_f.gc_task_id
        with self._lock:
            if self._resubmitted.get(task_id) is task_f:
                return False
            if task_id in self._waiting:
                self._waiting[task_id] = task_f
                self._resubmitted.pop(task_id, None)  # the interchange has it now
            elif task_id in self._resubmitted:
                self._resubmitted[task_id] = task_f
            else:
                return False
        log.info("task %s was delivered again and joins itself", task_id)
        return True

    def enter(
        self,
        task_f: upstream.GCFuture,
        packed_task: bytes,
        resource_specification: dict[str, Any],
        result_serializers: list[str] | None,
    ) -> None:
        """A task begins to wait; does not raise."""
        task_id = task_f.gc_task_id
        if self._journal is not None:
            entry = Entry(
                task_id,
                task_f.function_id,
                packed_task,
                resource_specification,
                result_serializers,
            )
            self._journal.keep(entry)
        with self._lock:
            self._waiting[task_id] = task_f

    @contextmanager
    def leaving(self, task_id: uuid.UUID) -> Iterator[upstream.GCFuture]:
        """A task ends to wait: inside, hand over or answer the future; then it is
        forgotten here."""
        with self._lock:
            task_f = self._waiting.pop(task_id)
        try:
            yield task_f
        finally:
            self._forget(task_id)

    def unanswered(self) -> int:
        """Tasks that wait, were resubmitted, or whose result is not stored."""
        with self._lock:
            tasks = self._waiting.keys() | self._resubmitted.keys()
        return len(tasks) + self._outbox.unwritten()

    def unsent(self) -> int:
        """Results of resubmitted tasks that the service may not have yet."""
        return self._outbox.unsent()

    def retry(self) -> None:
        """Store results that could not be stored before; does not raise."""
        if self._outbox.unwritten():
            self._outbox.retry()

    def resubmit(
        self, submit: Submit, allowed: Callable[[uuid.UUID | None], bool]
    ) -> None:
        """Submit what the last process left; does not raise.

        :param submit: the engine's
        :param allowed: whether the endpoint still runs a function
        """
        if self._journal is None:
            return
        count = 0
        for entry in self._journal.recover():
            count += 1
            if refusal := _refusal(entry, allowed):
                self._outbox.put(
                    entry.task_id, upstream.error_result(entry.task_id, refusal)
                )
                self._journal.forget(entry.task_id)
            else:
                self._submit_again(entry, submit)
        if count:
            log.info("%d tasks waited when this endpoint ended; resubmitted", count)

    def _submit_again(self, entry: Entry, submit: Submit) -> None:
        task_f = upstream.GCFuture(entry.task_id, function_id=entry.function_id)
        with self._lock:
            self._resubmitted[entry.task_id] = task_f
        task_f.add_done_callback(self._answer)
        try:
            submit(
                task_f,
                entry.packed_task,
                entry.resource_specification,
                entry.result_serializers,
            )
        except Exception as error:
            log.exception("task %s could not be resubmitted", entry.task_id)
            task_f.set_result(upstream.error_result(entry.task_id, internal(error)))
        with self._lock:
            waits = entry.task_id in self._waiting
        if not waits:
            self._forget(entry.task_id)

    def _answer(self, task_f: upstream.GCFuture) -> None:
        """A resubmitted task ended: to whom its result goes."""
        task_id = task_f.gc_task_id
        try:
            result = task_f.result()
        except Exception as error:  # noqa: BLE001 - any is the task's end
            result = upstream.error_result(task_id, internal(error))
        with self._lock:
            answered = self._resubmitted.pop(task_id, task_f)
        if answered is task_f:
            self._outbox.put(task_id, result)
        else:
            answered.set_result(result)

    def _forget(self, task_id: uuid.UUID) -> None:
        if self._journal is not None:
            self._journal.forget(task_id)


def _refusal(
    entry: Entry, allowed: Callable[[uuid.UUID | None], bool]
) -> ContainerError | None:
    """Why a task is not resubmitted; None if it is."""
    if entry.attempt > ATTEMPTS:
        return ContainerError(
            f"the endpoint was killed {entry.attempt} times while this task waited for"
            " its image",
            hint="the endpoint's log may say why; build the image with `gc-apptainer"
            " build`, then submit the task again",
            code="endpoint-killed",
        )
    if not allowed(entry.function_id):
        return ContainerError(
            "this endpoint no longer permits the function that was submitted",
            code="function-not-allowed",
        )
    return None
