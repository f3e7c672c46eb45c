"""One warm container: started once, then asked to run tasks, one at a time.

Runs in worker processes. What a worker holds of it is one ``apptainer exec`` process
in a session of its own, two pipes for frames (see :mod:`.agent`) and a thread that
copies the container's standard error to the worker's.

Guaranteed: when :meth:`Container.close` has returned, no process of the container and
no mount is left; if the worker dies without closing, the guard inside sees to it.
Not guaranteed: a process that is stuck in the kernel goes when it gets unstuck; one
that moved to a mount namespace *and* a session of its own may stay if the guard was
killed, or could not become its parent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import agent
from globus_compute_apptainer.worker.launch import LAYER_MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from globus_compute_apptainer.worker.launch import Launch

GRACE_SECONDS: Final = 5.0
NOISE_BYTES: Final = 65536
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 20
LOOK_SECONDS: Final = 0.25
EXIT_POLL_SECONDS: Final = 0.002
STANDARD_ERROR: Final = 2
# What Apptainer says where it does not leave layers out without a word.
OVERLAY_REFUSED: Final = "overlay images requires 'enable overlay'"

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


class Container:
    """A running container, or what was one.

    :raises TaskError: it did not start (``container-start-failed``)
    """

    def __init__(self, launch: Launch, start_timeout: float) -> None:
        try:
            self._process = subprocess.Popen(
                launch.argv,
                env=dict(launch.env),
                cwd=launch.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise not_started(f"cannot start {launch.argv[0]}: {error}") from error
        self._inlet = _opened(self._process.stdin)
        self._outlet = _opened(self._process.stdout)
        self._poll = select.poll()
        self._poll.register(self._outlet, select.POLLIN)
        self._errors = StderrPump(_opened(self._process.stderr))
        self._pinned = Pinned()
        self._manager = os.getppid()
        self._asked = 0
        try:
            self.details: Mapping[str, str] = self._await_hello(start_timeout)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether a task can be given to it; if not, it has yet to be closed."""
        return not self._exited(0)

    @property
    def _orphaned(self) -> bool:
        """Whether the process that started the worker, HTEX's manager, has died."""
        return os.getppid() != self._manager

    def ask(self, header: dict[str, Any], body: bytes) -> agent.Frame:
        """Have a task run; blocks until it has.

        :raises NotSentError: the container was gone before it had the whole task
        :raises TaskError: the container ended instead of answering, or answered
            another task (``container-crashed``), or nobody is left to take the
            answer (``worker-orphaned``)

        After any exception the container is of no use but to be closed.
        """
        before = self._errors.tail()
        self._errors.forget()
        self._asked += 1
        header = {**header, "id": self._asked}
        try:
            agent.write_frame(self._inlet.fileno(), header, body)
        except BrokenPipeError as error:
            raise self._gone(NotSentError, "before it had the task", before) from error
        answer = self._receive(None)
        if answer is None and self._orphaned:
            self.close()
            raise TaskError("the worker's manager is gone", code="worker-orphaned")
        if answer is None:
            raise self._gone(TaskError, "while it ran the task")
        if answer[0].get("id") != self._asked:
            self.close()
            raise TaskError("the container answered another task than it was given")
        return answer

    def close(self) -> None:
        """End the container and everything that runs in it; may be called again."""
        if self._process.returncode is not None:
            return
        self._inlet.close()
        self._wait_for_emptiness()
        agent.kill_all(functools.partial(agent.members, self._pinned.name))
        # The image is still mounted in the namespace that is held. Without its helper
        # Apptainer need not wait for that to change, and ends as the guard did.
        _kill_session(self._process.pid, spare=self._process.pid)
        self._exited(GRACE_SECONDS)
        _kill_session(self._process.pid)
        self._pinned.let_go()
        self._process.wait()
        self._errors.finish()
        self._outlet.close()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._inlet.close()
        self._outlet.close()
        self._pinned.let_go()
        self._process.returncode = 0  # not ours to wait for

    def _await_hello(self, seconds: float) -> Mapping[str, str]:
        deadline = time.monotonic() + seconds
        frame = self._receive(deadline) if self._skip_noise(deadline) else None
        if frame is not None:
            self._pinned = Pinned.of(frame[0]["guard"], frame[0]["namespace"])
            details: Mapping[str, str] = frame[0]["details"]
            return details
        late = time.monotonic() >= deadline
        early = not late and self._exited(GRACE_SECONDS)
        self.close()
        message = "the container did not start"
        message += f" within {seconds:g} s" if late else ""
        ended = describe_end(self._process.returncode) if early else ""
        raise not_started(message, ended=ended, tail=self._errors.tail())

    def _skip_noise(self, deadline: float) -> bool:
        """Read up to where the agent begins; False if it does not.

        What an image printed as it started goes where its standard error goes.
        """
        noise, found = b"", False
        while not found and len(noise) < NOISE_BYTES and time.monotonic() < deadline:
            byte = self._read(deadline, 1)
            if not byte:
                break
            noise += byte
            found = noise.endswith(agent.MAGIC)
        self._errors.add(noise.removesuffix(agent.MAGIC))
        return found

    def _receive(self, deadline: float | None) -> agent.Frame | None:
        """The next frame; None if there will be none, or none in time."""
        try:
            return agent.read_frame(functools.partial(self._read, deadline))
        except (EOFError, ValueError):  # it ended, or something else wrote there
            return None

    def _read(self, deadline: float | None, size: int) -> bytes:
        """Some of what the agent writes; nothing at the end, or when to give up."""
        while not self._poll.poll(LOOK_SECONDS * 1000):
            if deadline is not None and time.monotonic() > deadline:
                return b""
            if self._orphaned:
                return b""
            # A process that a task left behind may hold the pipe open.
            if not self.alive and not self._poll.poll(0):
                return b""
        return os.read(self._outlet.fileno(), size)

    def _gone(
        self, kind: type[TaskError], when: str, before: tuple[str, ...] = ()
    ) -> TaskError:
        """The error of a container that ended; ``before`` is what it said earlier."""
        self.close()
        return kind(
            f"the container ended {when}",
            ended=describe_end(self._process.returncode),
            tail=(before + self._errors.tail())[-TAIL_LINES:],
        )

    def _wait_for_emptiness(self) -> None:
        """Give the guard, and what it ends, time to go."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and not self._exited(EXIT_POLL_SECONDS):
            if self._pinned.name and not agent.members(self._pinned.name):
                return

    def _exited(self, seconds: float) -> bool:
        """Whether the leader ends in so many seconds. It is not reaped before
        :meth:`close` has killed its session, so that no other process gets its number.
        """
        if self._process.returncode is not None:
            return True
        deadline = time.monotonic() + seconds
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):  # somebody waited for every child
            while os.waitid(os.P_PID, self._process.pid, flags) is None:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(EXIT_POLL_SECONDS)
        return True


class Pinned:
    """The name of a container's mount namespace, which stays its own as long as this
    is held: the kernel gives the numbers of namespaces that are gone to new ones.
    """

    def __init__(self, name: str = "", descriptor: int = -1) -> None:
        self.name, self._descriptor = name, descriptor

    @classmethod
    def of(cls, guard: int, name: str) -> Pinned:
        """Nameless, so that nothing is killed by it, where it is the worker's own
        namespace, or that of ``guard`` cannot be held.
        """
        if name == agent.mount_namespace():
            return cls()
        try:
            descriptor = os.open(f"/proc/{guard}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return cls()
        held = cls(name, descriptor)
        if name != f"mnt:[{os.fstat(descriptor).st_ino}]":
            held.let_go()
        return held

    def let_go(self) -> None:
        """Close it; nameless from here on."""
        self.name, descriptor, self._descriptor = "", self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class NotSentError(TaskError):
    """The container did not get the task, which may be given to another."""


class StderrPump:
    """Copies a container's standard error to the worker's, and remembers the end."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._tail = b""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """From here on, remember only what comes."""
        with self._lock:
            self._tail = b""

    def tail(self) -> tuple[str, ...]:
        """The last lines, without Apptainer's own remarks."""
        with self._lock:
            text = self._tail.decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if not line.startswith("INFO:    ")]
        return tuple(lines[-TAIL_LINES:])

    def add(self, chunk: bytes) -> None:
        """Take what came by another way."""
        with self._lock:
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, chunk)

    def finish(self) -> None:
        """Wait a little for the rest."""
        self._thread.join(GRACE_SECONDS)

    def _copy(self) -> None:
        with self._source as source:
            while chunk := source.read(65536):
                self.add(chunk)


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

    :param ended: how it ended, if it did
    :param tail: what it, or Apptainer, said last
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


def _kill_session(leader: int, spare: int = 0) -> None:
    """Kill a session: Apptainer's processes, which are outside of the container."""
    agent.kill_all(lambda: _session(leader) - {spare})


def _session(leader: int) -> set[int]:
    """The living processes of a session."""
    members = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = stat.read_text("latin-1").rpartition(")")[2].split()
            if after_name[0] not in "ZX" and int(after_name[3]) == leader:
                members.add(int(stat.parent.name))
    return members


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("asked for a pipe")
    return stream
