"""A child in a container, which runs tasks for this worker, one at a time.

Runs in worker processes. What a worker holds of a child are two connections for frames
(:mod:`.inside.frames`), one each way, a *leash*, on which the child's guard tells how
the child ended, and a thread that copies its standard error to the worker's. The
container itself may serve other workers; the node's keeper owns it (:mod:`.keeper`).

Guaranteed: when :meth:`Container.close` has returned, no process that this worker's
tasks started in the container is left; if the worker dies without closing, the guard
sees to it. Not guaranteed: a process that is stuck in the kernel goes when it gets
unstuck.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker.inside import frames, messages
from globus_compute_apptainer.worker.launch import LAYER_MISSING
from globus_compute_apptainer.worker.likeness import traits
from globus_compute_apptainer.worker.node import KeeperGoneError, Node
from globus_compute_apptainer.worker.stderr import TAIL_LINES, StderrPump, lines, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from globus_compute_apptainer.worker.node import Bounds, Prepare

GRACE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.25
_LOOK: Final = struct.pack("@ll", 0, int(LOOK_SECONDS * 1e6))  # a `struct timeval`
# What Apptainer says where it does not leave layers out without a word.
OVERLAY_REFUSED: Final = "overlay images requires 'enable overlay'"

_DONE: Final = frames.Frame(0, frames.DONE).header

NO_SHELL: Final = "stat /bin/sh: no such file or directory"  # Apptainer's words, too

# What Apptainer says when it cannot start an image, and what to do about it.
_KNOWN_CAUSES: Final = (
    (
        ("image format not recognized", "squashfuse_ll exited", "Input/output error"),
        "the image file is damaged; ask the endpoint's admin to remove it",
    ),
    (
        ("user namespace", "Operation not permitted"),
        "this node does not let ordinary users run containers; `gc-apptainer doctor`, "
        "run there by the endpoint's admin, says what is missing",
    ),
    (("No space left on device",), "a file system of this node is full"),
    (("tasks need 3.9 or newer",), "choose a `base_image` with a newer Python"),
)


Answer = tuple["Mapping[str, Any]", bytes]


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What a container says of itself.

    :param details: versions of what tasks run on
    :param not_preloaded: modules that it was to import, and did not: why
    """

    details: Mapping[str, str]
    not_preloaded: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Container:
    """A child that runs tasks, or what was one.

    :param key: run identity: those with the same one share a container
    :param prepare: asked for what starts the container, if the node has none
    :raises TaskError: there is none (``container-start-failed``)
    :raises HostError: there is no place for what workers share (``no-node-folder``)

    What ``prepare`` raises is passed on.
    """

    def __init__(self, node: Node, key: str, prepare: Prepare, bounds: Bounds) -> None:
        self._manager = os.getppid()
        self._asked = 0
        self._lasting: Mapping[str, Any] | None = None  # what it was told last
        self._greeted = False  # it lives, and has what is needed of the worker
        self._reader = frames.Reader(self._read)
        self._end: dict[str, Any] | None = None
        # One each way: who sleeps at one is woken when the other end has been read.
        self._tasks, tasks = socket.socketpair()
        self._answers, answers = socket.socketpair()
        self._leash, leash = messages.pair()
        errors, errors_inside = os.pipe()
        self._errors = StderrPump(os.fdopen(errors, "rb", buffering=0))
        self._answers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LOOK)
        self._poll = select.poll()
        self._poll.register(self._leash, select.POLLIN)
        try:
            given = [*(end.fileno() for end in (tasks, answers, leash)), errors_inside]
            answer = self._attach(node, key, prepare, bounds, given)
        except BaseException:
            self._errors.start()  # it ends with what it reads
            self._forget()
            raise
        finally:
            for end in (tasks, answers, leash):
                end.close()
            os.close(errors_inside)
        self.facts: Final = Facts(answer["details"], answer["failed"])
        if answer["noise"]:
            self._errors.add(answer["noise"].encode())

    @property
    def alive(self) -> bool:
        """Whether a task can be given to it; if not, it has yet to be closed."""
        return self._end is None and not self._poll.poll(0)

    @property
    def _orphaned(self) -> bool:
        """Whether the process that started the worker, HTEX's manager, has died."""
        return os.getppid() != self._manager

    def ask(self, header: dict[str, Any], body: bytes) -> Answer:
        """Have a task run; blocks until it has.

        :param header: what is ``lasting`` is sent only where it is not as before
        :raises NotSentError: the child was gone before it had the whole task
        :raises TaskError: the child ended instead of answering, or answered
            another task (``container-crashed``), or nobody is left to take the
            answer (``worker-orphaned``)

        After any exception it is of no use but to be closed.
        """
        before = self._errors.forget()
        self._asked += 1
        lasting = header["lasting"]
        if lasting is self._lasting or lasting == self._lasting:
            header = header.copy()
            del header["lasting"]
        else:
            self._lasting = lasting
        asked = frames.Frame(self._asked, frames.packed(header), body)
        try:
            frames.write_frame(self._tasks.fileno(), asked)
        except ConnectionError as error:
            raise self._gone(NotSentError, "before it had the task", before) from error
        self._errors.start()  # at the first task, which runs meanwhile
        answer = self._receive()
        if answer is None and self._orphaned:
            self.close()
            raise TaskError("the worker's manager is gone", code="worker-orphaned")
        if answer is None:
            self.close()
            if not self._greeted or (self._end or {}).get("unread"):
                raise self._gone(NotSentError, "before it had the task", before)
            raise self._gone(TaskError, "while it ran the task")
        if answer[0] != self._asked:
            self.close()
            raise TaskError("the container answered another task than it was given")
        return answer[1:]

    def close(self) -> None:
        """End the child and everything that it started; may be called again."""
        if self._end is not None:
            return
        with contextlib.suppress(OSError):
            self._leash.shutdown(socket.SHUT_WR)
        told = self._poll.poll(GRACE_SECONDS * 1000)
        received = messages.receive(self._leash) if told else None
        self._end = received[0] if received else {}
        self._forget()
        self._errors.finish()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._end = {}
        self._forget()

    def _forget(self) -> None:
        for end in (self._tasks, self._answers, self._leash):
            end.close()

    def _attach(
        self,
        node: Node,
        key: str,
        prepare: Prepare,
        bounds: Bounds,
        given: Sequence[int],
    ) -> dict[str, Any]:
        try:
            answer = node.ask(
                key, prepare, bounds, traits(), given, lambda: self._orphaned
            )
        except KeeperGoneError as error:
            raise not_started(f"the container did not start: {error}") from error
        if answer["kind"] == "given":
            return answer
        if answer["reason"] == "not-started":
            raise not_started(f"cannot start a program: {answer['text']}")
        self._errors.add(answer["tail"].encode())
        message = "the container did not start"
        late = answer["reason"] == "late"
        message += f" within {bounds.start_timeout:g} s" if late else ""
        ended = "" if late else describe_end(answer["code"])
        raise not_started(message, ended=ended, tail=lines(answer["tail"]))

    def _receive(self) -> tuple[int, Mapping[str, Any], bytes] | None:
        """The next answer, and to which task; None if there will be none."""
        try:
            answer = self._reader.frame()
            if answer is not None and answer.head == frames.HELLO:
                self._greeted = True
                answer = self._reader.frame()
            if answer is None:
                return None
            header = _DONE if answer.head == frames.DONE else answer.header
        except (EOFError, ValueError, OSError):  # it ended, or another wrote there
            return None
        return answer.number, header, answer.body

    def _read(self, size: int) -> bytes:
        """Some of what the child writes; nothing at the end, or when to give up."""
        while True:
            try:
                return self._answers.recv(size)
            except BlockingIOError:  # nothing came for LOOK_SECONDS
                pass
            # A process that a task left behind may hold the connection open.
            if self._orphaned or not self.alive:
                break
        try:
            return self._answers.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def _gone(self, kind: type[TaskError], when: str, before: bytes = b"") -> TaskError:
        """The error of a child that ended; ``before`` is what it said earlier."""
        self.close()
        status = (self._end or {}).get("status")
        return kind(
            f"the container ended {when}",
            ended=""
            if status is None
            else describe_end(os.waitstatus_to_exitcode(status)),
            tail=(shown(before) + self._errors.tail())[-TAIL_LINES:],
        )


class NotSentError(TaskError):
    """The container did not get the task, which may be given to another."""


def describe_end(returncode: int) -> str:
    """How a process ended, in words: ``signal SIGSEGV``, ``exit code 3``."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"


def no_folder(reason: str) -> TaskError:
    """The error of a container that lacks the folder that a task runs in."""
    return TaskError(
        f"the task's folder cannot be used in the container: {reason}",
        hint="the endpoint's `working_dir` must be on a file system that "
        "Apptainer may bind",
        code="no-working-directory",
    )


def not_started(
    message: str, *, ended: str = "", tail: tuple[str, ...] = ()
) -> TaskError:
    """The error of a container that did not start.

    :param ended: how its process ended
    :param tail: the last lines of what it said
    """
    text = "\n".join(tail)
    if LAYER_MISSING in text or OVERLAY_REFUSED in text:
        return TaskError(
            "this node does not show the layers that were put over the image's base",
            hint="its admin can allow overlays (`enable overlay` in apptainer.conf, "
            "or fuse-overlayfs), or set `build.strategy: flat` for the endpoint",
            code="overlay-unavailable",
            ended=ended,
            tail=tail,
        )
    if NO_SHELL in text:
        return TaskError(
            "the image has no `/bin/sh`, which its containers are started through",
            hint="choose a `base_image` that has a shell; an image with Python that is"
            " of one piece (`build.strategy: flat`) needs none",
            code="no-shell",
            ended=ended,
            tail=tail,
        )
    hints = [h for signs, h in _KNOWN_CAUSES if any(sign in text for sign in signs)]
    return TaskError(
        message,
        hint=hints[0] if hints else "",
        code="container-start-failed",
        ended=ended,
        tail=tail,
    )
