"""The keeper's work: hand out connections to zygotes, and see to their ends.

Runs in the keeper, a single thread that never waits for one zygote while another has
need of it. States of a zygote::

    starting ──hello──► serving ──least recently used, or idle──► retiring ──► ended
        └──late, or it ended: every worker that waits is told──────────────────┘
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any, Final

from globus_compute_apptainer.worker.inside import messages, processes
from globus_compute_apptainer.worker.keeper import memory
from globus_compute_apptainer.worker.keeper.owner import Owner
from globus_compute_apptainer.worker.keeper.zygote import Zygote

GRACE_SECONDS: Final = 5.0
LONGEST_WAIT: Final = 60.0


GIVEN: Final = 4
"""How many descriptors a worker gives for its child."""


class Request:
    """A worker that asks for a child.

    :param sent: what it said: key, traits, limits
    :param given: connections, leash and error stream for the child
    """

    def __init__(
        self, worker: socket.socket, sent: dict[str, Any], given: list[int]
    ) -> None:
        self.worker, self.sent, self.given = worker, sent, given

    def answer(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone
            messages.send(self.worker, message)
        self.close()

    def close(self) -> None:
        messages.close(self.given)
        self.given = []
        self.worker.close()


class Keeper:
    """Serves one worker pool until its owner is gone.

    :param listener: where workers connect
    :param folder: the pool's own, removed at the end
    """

    def __init__(self, listener: socket.socket, folder: str, owner: Owner) -> None:
        self._listener, self._folder, self._owner = listener, folder, owner
        self._zygotes: dict[int, Zygote] = {}  # by the program's process id
        self._waiting: dict[int, list[Request]] = {}  # likewise
        self._asking: dict[int, socket.socket] = {}  # by file descriptor
        self._idle_timeout: dict[str, float] = {}
        self._deadlines: dict[int, float] = {}
        self._count, self._over = 0, False
        processes.become_subreaper()
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        listener.setblocking(False)
        self._wake = processes.wake_on_child()
        self._poll = select.poll()
        for source in (listener, self._wake):
            self._poll.register(source, select.POLLIN)
        if owner.descriptor >= 0:
            self._poll.register(owner.descriptor, select.POLLIN)

    def run(self) -> None:
        """Serve until the owner is gone, then leave nothing."""
        while not self._over and not self._owner.gone:
            for fd, _ in self._poll.poll(self._patience() * 1000):
                self._attend(fd)
            self._look()
        self._end()

    def _stop(self, *_: object) -> None:
        self._over = True

    def _attend(self, fd: int) -> None:
        """See to what can be read. It may be another's by now, where something was
        closed meanwhile: nothing here waits for what it expects to be there."""
        with contextlib.suppress(BlockingIOError):
            if fd == self._listener.fileno():
                worker, _ = self._listener.accept()
                self._asking[worker.fileno()] = worker
                self._poll.register(worker, select.POLLIN)
            elif fd == self._wake.fileno():
                processes.drain(self._wake)
                self._reap()
            elif fd in self._asking:
                self._ask(self._asking[fd])
            else:
                for zygote in self._zygotes.values():
                    if zygote.control.fileno() == fd:
                        self._hear(zygote)
                        break

    def _ask(self, worker: socket.socket) -> None:
        """Take a worker's request, and answer at once where that can be done."""
        try:
            received = messages.receive(worker, wait=False)
        except ValueError:  # not a worker of ours
            received = None
        self._poll.unregister(worker)
        del self._asking[worker.fileno()]
        if (
            received is None or len(received[1]) < GIVEN
        ):  # it is gone; we may open no more
            messages.close(received[1] if received else ())
            worker.close()
            return
        sent, given = received
        request, payload = Request(worker, sent, given[:GIVEN]), given[GIVEN:][:1]
        held = given[GIVEN + 1 :]
        zygote = self._current(sent["key"])
        if zygote is None and not payload:
            request.answer(kind="unknown")
            return
        self._idle_timeout[sent["key"]] = sent["idle_timeout"]
        try:
            if zygote is None:
                zygote, held = self._start(request, payload[0], held), []
        except OSError as error:
            request.answer(kind="failed", reason="not-started", text=str(error))
            return
        finally:
            messages.close([*payload, *held])
        zygote.used = time.monotonic()
        self._waiting[zygote.pid].append(request)
        if zygote.hello is not None:
            self._hand_out(zygote)

    def _current(self, key: str) -> Zygote | None:
        for zygote in self._zygotes.values():
            if zygote.key == key and not zygote.retiring:
                return zygote
        return None

    def _start(self, request: Request, payload: int, held: list[int]) -> Zygote:
        with open(payload, "rb", closefd=False) as file:
            launch = json.loads(file.read())
        self._make_room(request.sent["warm_per_node"] - 1, request.sent["warm_memory"])
        self._count += 1
        log = f"{self._folder}/{self._count}.log"
        zygote = Zygote(request.sent["key"], launch, log, held)
        self._zygotes[zygote.pid] = zygote
        self._waiting[zygote.pid] = []
        self._deadlines[zygote.pid] = zygote.started + request.sent["start_timeout"]
        self._poll.register(zygote.control, select.POLLIN)
        return zygote

    def _make_room(self, keep: int, most: int | None) -> None:
        """Retire the least recently used of those that nobody uses right now.

        :param keep: how many may stay
        :param most: bytes that those may take; None: see :mod:`.memory`
        """
        there = [z for z in self._zygotes.values() if not z.retiring]
        if not there:
            return
        most = memory.allowed() if most is None else most
        surplus = len(there) - max(keep, 0)
        taken = memory.taken(processes.descendants({os.getpid()}), enough=most)
        idle = [(since, z.pid) for z in there if z.hello and (since := z.idle_since())]
        for _, pid in sorted(idle):
            if surplus <= 0 and taken <= most:
                return
            surplus -= 1
            if taken > most:
                taken -= memory.taken(self._zygotes[pid].family)
            self._zygotes[pid].tell("retire")

    def _hear(self, zygote: Zygote) -> None:
        received = messages.receive(zygote.control, wait=False)
        if received is None:  # its end is to come, and with it the reason
            self._poll.unregister(zygote.control)
            if zygote.hello is not None:
                zygote.retiring = True
            return
        zygote.hello, zygote.noise = received[0], zygote.tail()
        del self._deadlines[zygote.pid]
        self._hand_out(zygote)

    def _hand_out(self, zygote: Zygote) -> None:
        """Answer all who wait for a zygote that serves."""
        hello = zygote.hello or {}
        noise, zygote.noise = zygote.noise, ""
        for request in self._waiting[zygote.pid]:
            zygote.serve(request.sent["traits"], request.given)
            request.answer(
                kind="given",
                details=hello["details"],
                failed=hello["failed"],
                noise=noise,
            )
            noise = ""
        self._waiting[zygote.pid] = []

    def _reap(self) -> None:
        ended = processes.reap()
        for pid in ended.keys() & self._zygotes.keys():
            zygote = self._zygotes.pop(pid)
            with contextlib.suppress(KeyError):
                self._poll.unregister(zygote.control)
            tail = zygote.tail()
            code = zygote.ended(ended[pid])
            late = self._deadlines.pop(pid, None) == 0
            for request in self._waiting.pop(pid):
                reason = "late" if late else "ended"
                request.answer(kind="failed", reason=reason, code=code, tail=tail)
            processes.kill_all(self._strays)

    def _strays(self) -> set[int]:
        """Processes that no living container is responsible for."""
        return processes.descendants({os.getpid()}, spare=self._zygotes)

    def _look(self) -> None:
        """Kill what does not start in time; retire what has been idle for long."""
        now = time.monotonic()
        for pid, deadline in self._deadlines.items():
            if 0 < deadline <= now:
                self._deadlines[pid] = 0
                self._zygotes[pid].kill()
        for zygote in self._zygotes.values():
            if self._idle_deadline(zygote) <= now:
                zygote.tell("retire")

    def _idle_deadline(self, zygote: Zygote) -> float:
        if zygote.hello is None or zygote.retiring:
            return float("inf")
        since = zygote.idle_since()
        if since is None:
            return float("inf")
        return since + self._idle_timeout[zygote.key]

    def _patience(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        due = [deadline - now for deadline in self._deadlines.values() if deadline]
        due += [self._idle_deadline(zygote) - now for zygote in self._zygotes.values()]
        return max(0.0, min([*due, self._owner.look_seconds or LONGEST_WAIT]))

    def _end(self) -> None:
        """End all containers, and remove the folder."""
        import shutil  # noqa: PLC0415 - not while a worker waits for us

        self._listener.close()
        for zygote in self._zygotes.values():
            zygote.tell("end")
        ends = select.poll()
        ends.register(self._wake, select.POLLIN)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._zygotes and (left := deadline - time.monotonic()) > 0:
            ends.poll(left * 1000)
            processes.drain(self._wake)
            self._reap()
        for zygote in self._zygotes.values():
            zygote.kill()
        processes.kill_all(lambda: processes.descendants({os.getpid()}))
        shutil.rmtree(self._folder, ignore_errors=True)
