"""``ApptainerEngine``: the stock engine, plus containers for tasks that ask.

Runs in the endpoint process. A task without a spec takes the stock engine's path;
a task with one waits for its image, off the endpoint's task thread, and is then
handed to the same executor with :func:`..worker.runner.run` in place of upstream's
``execute_task``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from globus_compute_apptainer import events
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint import control, interchange, pidfile, upstream
from globus_compute_apptainer.endpoint.failure import ErrorsTo
from globus_compute_apptainer.endpoint.progress import Progress
from globus_compute_apptainer.endpoint.recent import Recent
from globus_compute_apptainer.endpoint.requests import Requests, Wanted, split
from globus_compute_apptainer.endpoint.waiting import WaitingTasks, open_waiting
from globus_compute_apptainer.endpoint.watch import Asked, Means, Watch
from globus_compute_apptainer.images import ImageService, Ready, open_service

log = logging.getLogger(__name__)

#: The core endpoint kills a user endpoint 10 s after asking it to stop.
PUBLISHER_SECONDS = 2.0


class ApptainerEngine(upstream.GlobusComputeEngine):
    """A :class:`GlobusComputeEngine` that runs tasks in images built on demand.

    :param containers: the ``containers:`` block of the configuration; see
        ``docs/reference/configuration.md``
    :raises ConfigError: (a :class:`ValueError`) for a block that is not valid

    Every other argument is the stock engine's.

    Guarantees: once started, :meth:`submit` neither blocks nor raises for a task
    with a spec; every task ends in a result or an error; calls of the executor's
    ``submit_payload`` never overlap, whichever thread makes them (Parsl's outgoing
    socket has no lock of its own).

    Tasks that wait for an image outlive this process when it is killed
    (:mod:`.waiting`); on an orderly shutdown they end in an error. While anything is
    built or waits, the endpoint's idle shutdown does not end it (:mod:`.interchange`).
    """

    def __init__(
        self, *args: Any, containers: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        # Called while the configuration is loaded, before the endpoint daemonises:
        # no file stays open and nothing is started here.
        self.containers = containers
        self._config = ContainersConfig.parse(containers)
        if self._config.remove_dead_pid_file:  # later, upstream has refused to start
            pidfile.remove_if_dead(os.environ)
        self._handover = threading.Lock()
        self._images: ImageService | None = None
        self._recent: Recent | None = None
        self._means: Means | None = None
        self._waiting: WaitingTasks | None = None
        self._high_assurance = False
        # Replaced by those who want to watch builds, before `start`.
        self.event_sink: events.Sink = _log_event
        self._requests = Requests(self._config, _default_python(), self._stored)
        self._controls: control.Controls | None = None
        super().__init__(*args, **kwargs)

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start the stock engine and the images; resubmit the tasks that waited for
        one when the last process of this endpoint was killed."""
        upstream.log_with_the_endpoint()
        if problem := upstream.outside_window():
            log.warning(problem)
        progress = Progress(self.event_sink)
        self._images = open_service(self._config, os.environ, progress)
        terms = functools.partial(upstream.terms, self)
        self._recent = Recent(self._images, self._config, terms)
        self._means = Means(
            self._images,
            self._tell,
            self._attempt,
            self._anew,
            lambda: int(self.max_retries_on_system_failure),
            self._failure,
        )
        self._controls = control.Controls(self._requests, self._images, progress)
        super().start(*args, **kwargs)
        self._waiting = open_waiting(Path(self.run_dir), journaled=self._journaled())
        pidfile.claim(Path(self.run_dir))
        ours = interchange.starting()
        if ours is not None:
            interchange.keep_while_busy(ours, self._busy)
        self._waiting.resubmit(self.submit, lambda f: interchange.allows(ours, f))

    def assert_ha_compliant(self) -> None:
        """The stock engine's; asked only on a high-assurance endpoint, before the
        start."""
        super().assert_ha_compliant()
        self._high_assurance = True

    def _journaled(self) -> bool:
        """A task's code and arguments are not for the disk of a high-assurance
        endpoint, unless its admin says so."""
        asked = self._config.journal
        return asked == "on" or (asked == "auto" and not self._high_assurance)

    def submit(
        self,
        task_f: upstream.GCFuture,
        packed_task: bytes,
        resource_specification: dict[str, Any],
        result_serializers: list[str] | None = None,
    ) -> None:
        """Take a task; the stock engine's contract.

        :raises RuntimeError: if the engine was not started, as the stock engine
        """
        self._ensure_ready()
        attached, rest = split(resource_specification)
        plain = attached is None and self._config.default_container is None
        if plain or not self._executor_accepts(rest):
            super().submit(task_f, packed_task, rest, result_serializers)
            return
        tasks = self._waiting
        assert tasks is not None, "the engine was started"  # noqa: S101
        if tasks.joined(task_f):
            return

        wait = functools.partial(
            tasks.enter,
            *(task_f, packed_task, resource_specification, result_serializers),
        )
        with ErrorsTo(task_f):
            if (asked := control.parse(attached)) is not None:
                self._control(task_f, asked, result_serializers, wait)
            elif (wanted := self._requests.wanted(attached)) is not None:
                run = functools.partial(
                    self._run, packed_task, rest, result_serializers, wanted
                )
                self._when_ready(task_f, wanted, run, wait)

    def _run(
        self,
        packed_task: bytes,
        resource_specification: dict[str, Any],
        result_serializers: list[str] | None,
        wanted: Wanted,
        task_f: upstream.GCFuture,
        ready: Ready,
    ) -> None:
        """Hand a task over whose image is ready, and watch over the image."""
        assert self._means is not None, "submit() made sure that it was started"  # noqa: S101
        asked = Asked(
            task_f, packed_task, resource_specification, result_serializers, wanted
        )
        watch = Watch(self._means, asked, ready)
        upstream.bind(self, task_f)
        watch.begin()

    def _tell(self, asked: Asked, ready: Ready) -> str:
        assert self._recent is not None, "submit() made sure that it was started"  # noqa: S101
        return self._recent.terms(ready, asked.wanted, asked.result_serializers)

    def _attempt(self, asked: Asked, told: str) -> Future[Any]:
        task_f, packed_task, rest, *_ = asked
        return upstream.attempt(self, task_f, packed_task, rest, told)

    def _failure(self, asked: Asked, began: int, errors: Sequence[Exception]) -> bytes:
        return upstream.failure(self, asked.task_f.gc_task_id, began, errors)

    def _anew(self, asked: Asked, then: Callable[[Ready], None]) -> None:
        self._when_ready(
            asked.task_f, asked.wanted, lambda _, ready: then(ready), anew=True
        )

    def _control(
        self,
        task_f: upstream.GCFuture,
        asked: control.Control,
        serializers: list[str] | None,
        wait: Callable[[], None],
    ) -> None:
        """Answer a control request: ``build`` when the image is ready."""
        controls = self._controls
        assert controls is not None, "submit() made sure that the engine was started"  # noqa: S101

        def answer(task_f: upstream.GCFuture, value: Mapping[str, Any]) -> None:
            packed = upstream.value_result(task_f.gc_task_id, value, serializers)
            task_f.set_result(packed)

        def reply(found: Mapping[str, Any] | Exception) -> None:
            with ErrorsTo(task_f):
                if isinstance(found, Exception):
                    raise found
                answer(task_f, found)

        if asked.action == "build":
            self._when_ready(
                task_f,
                controls.wanted(asked),
                lambda waited, ready: answer(waited, control.built(ready)),
                wait,
                fresh=asked.force,
            )
        else:
            controls.answer(asked, reply)

    def _stored(self, digest: str) -> Mapping[str, Any] | None:
        ready = self._images and self._images.cached(digest)
        return ready.image.manifest.spec if ready else None

    def _when_ready(
        self,
        task_f: upstream.GCFuture,
        wanted: Wanted,
        hand_over: Callable[[upstream.GCFuture, Ready], None],
        wait: Callable[[], None] | None = None,
        *,
        anew: bool = False,
        fresh: bool = False,
    ) -> None:
        """Call ``hand_over`` with the image: at once if cached, else when built, after
        a call of ``wait``. Its future may be that of a later delivery.

        :param anew: what was found a moment ago does not count
        :param fresh: nor does what is there
        """
        images, recent = self._images, self._recent
        assert images is not None, "submit() made sure that the engine was started"  # noqa: S101
        assert recent is not None, "submit() made sure that the engine was started"  # noqa: S101
        if anew or fresh:
            recent.forget(wanted)
        ready = None if fresh else recent.cached(wanted)
        if ready is None:
            self._request(task_f, wanted, hand_over, wait, fresh=fresh)
            return
        with ErrorsTo(task_f):
            hand_over(task_f, ready)

    def _request(
        self,
        task_f: upstream.GCFuture,
        wanted: Wanted,
        hand_over: Callable[[upstream.GCFuture, Ready], None],
        wait: Callable[[], None] | None,
        *,
        fresh: bool,
    ) -> None:
        """Have the image made; see :meth:`_when_ready`."""
        images, recent = self._images, self._recent
        assert images is not None, "submit() made sure that the engine was started"  # noqa: S101
        assert recent is not None, "submit() made sure that the engine was started"  # noqa: S101

        def done(future: Future[Ready]) -> None:
            recent.forget(wanted)
            with self._waited(task_f, journaled=wait is not None) as waited:
                if not future.cancelled():
                    hand_over(waited, future.result())

        future = images.request(
            wanted.image,
            name=wanted.name,
            policy=wanted.policy,
            max_age=wanted.max_age,
            fresh=fresh,
        )
        if wait is not None:
            wait()
        future.add_done_callback(done)
        task_f.add_done_callback(lambda task: task.cancelled() and future.cancel())

    @contextlib.contextmanager
    def _waited(
        self, task_f: upstream.GCFuture, *, journaled: bool
    ) -> Iterator[upstream.GCFuture]:
        """The future of a task that ends to wait; errors inside are the task's."""
        with contextlib.ExitStack() as stack:
            if journaled and self._waiting is not None:
                task_f = stack.enter_context(self._waiting.leaving(task_f.gc_task_id))
            stack.enter_context(ErrorsTo(task_f))
            yield task_f

    def _executor_accepts(self, resource_specification: dict[str, Any]) -> bool:
        """Whether Parsl will take the other keys; if not, the stock path says why,
        now and not after a build."""
        try:
            self.executor.validate_resource_spec(resource_specification)
        except Exception:  # noqa: BLE001 - whatever it is, the stock path reports it
            return False
        return True

    def _submit(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's hand-over to Parsl, one at a time: every path ends here."""
        with self._handover:
            return super()._submit(*args, **kwargs)

    def get_status_report(self) -> upstream.EPStatusReport:
        """The stock report, with counts of images and of tasks waiting for one."""
        report = super().get_status_report()
        if self._images is not None:
            report.global_state["containers"] = self._images.counts()
        if self._waiting is not None:
            self._waiting.retry()  # called at every heartbeat
        return report

    def _busy(self) -> str:
        """What an idle shutdown would interrupt, in words; empty for nothing."""
        if self._images is None or self._waiting is None:
            return ""
        counts = self._images.counts()
        images = counts["queued"] + counts["building"]
        tasks, results = self._waiting.unanswered(), self._waiting.unsent()
        if not images and not tasks and not results:
            return ""
        return (
            f"{images} images are being made, {tasks} tasks wait or were resubmitted,"
            f" {results} results are on their way"
        )

    def shutdown(self, /, **kwargs: Any) -> None:
        """Stop builds, end waiting tasks in an error, stop the stock engine.

        Safe on an engine that never started, and when called twice.
        """
        if self._images is not None:
            upstream.await_stopping_publishers(PUBLISHER_SECONDS)
            self._images.close()
        if self._controls is not None:
            self._controls.close()
        super().shutdown(**kwargs)


def _log_event(event: events.Event) -> None:
    if isinstance(event, events.StageStarted):
        log.info("building %s: %s", event.digest, event.stage)
    elif isinstance(event, events.BuildFinished):
        outcome = f"failed ({event.error})" if event.error else "ready"
        log.info("image for %s %s after %.1f s", event.digest, outcome, event.seconds)


def _default_python() -> str:
    """The submitting client's Python minor version where the core endpoint passed
    it on (``GC_USER_PYTHON_VERSION``, set by its ``core_endpoint.py``), else ours."""
    wanted = os.environ.get("GC_USER_PYTHON_VERSION", "")
    match = re.match(r"(3\.\d+)(\.|\s|$)", wanted)
    return match[1] if match else ".".join(platform.python_version_tuple()[:2])
