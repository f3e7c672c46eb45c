"""The parent of one child: it ends what the child leaves, and says how it ended.

Runs in the container, between zygote and child. If the worker lets go of the *leash*
(or dies, however busy the child is), the guard ends the child; if the child ends, it
tells the worker how. In both cases it first ends every process that tasks started.
If the zygote goes away, so do the guard and all that is below it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Dict, NoReturn, Optional, Set

from . import messages, processes


class Guard:
    """Watches one child; ``assign`` is the connection to the zygote."""

    def __init__(self, child: int, assign: socket.socket) -> None:
        self._child, self._assign = child, assign
        self._leash: Optional[socket.socket] = None
        self._tasks: Optional[socket.socket] = None
        self._status: Optional[int] = None
        self._wake = processes.wake_on_child()
        self._poll = select.poll()
        for source in (assign, self._wake):
            self._poll.register(source, select.POLLIN)

    def run(self) -> NoReturn:
        """Wait for an end, whoever's it is, and bring about the others'."""
        self._note(processes.reap())  # it may have ended before we could be told
        while self._status is None and not self._over():
            pass
        if self._status is None:
            os.kill(self._child, signal.SIGKILL)
            self._status = os.waitpid(self._child, 0)[1]
        if self._leash is None and select.select([self._assign], [], [], 0)[0]:
            self._told()  # the child was quicker than we
        processes.reap()
        if not processes.childless():
            processes.kill_all(self._leftovers)
        self._report(self._status)
        os._exit(0)

    def _over(self) -> bool:
        """Wait for something; whether it means that the child must go."""
        for fd, _ in self._poll.poll():
            if fd == self._wake.fileno():
                processes.drain(self._wake)
                self._note(processes.reap())
            elif fd != self._assign.fileno() or not self._told():
                return True
        return False

    def _note(self, ended: Dict[int, int]) -> None:
        self._status = ended.get(self._child, self._status)

    def _told(self) -> bool:
        """Take the zygote's message; False if there is no zygote any more."""
        received = messages.receive(self._assign)
        if received is None:
            return False
        message, descriptors = received
        if message["kind"] == "serve":
            self._leash, self._tasks = (socket.socket(fileno=fd) for fd in descriptors)
            self._poll.register(self._leash, select.POLLIN)
        elif self._tasks is not None:  # retire: what was sent is still answered
            with contextlib.suppress(OSError):
                self._tasks.shutdown(socket.SHUT_RD)
        return True

    def _leftovers(self) -> Set[int]:
        processes.reap()
        if processes.childless():
            return set()
        return processes.descendants({os.getpid()})

    def _report(self, status: int) -> None:
        """The last that the worker hears, when nothing of the child is left."""
        if self._leash is None or self._tasks is None:
            return
        unread = False
        with contextlib.suppress(OSError):
            self._tasks.shutdown(socket.SHUT_RD)  # what the worker sends now fails
            unread = bool(self._tasks.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        self._tasks.close()
        with contextlib.suppress(OSError):
            messages.send(self._leash, {"status": status, "unread": unread})
