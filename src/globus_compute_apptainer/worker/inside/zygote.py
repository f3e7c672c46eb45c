"""The process that Apptainer starts: it forks a child for every worker that asks.

Runs in the container. It listens to the keeper (:mod:`..keeper`), which sends the
workers' connections. A child is forked in advance, so that a worker need not wait for
it. When the keeper says so, or has died, the zygote *retires*: children answer what
they have been sent, and when the last is gone, it ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NoReturn, Optional, Set

from . import messages, processes
from .activity import SLOTS, Activity
from .guard import Guard

PAUSE_MILLISECONDS = 20  # forking at once would be in the way of the child's first task

Work = Callable[[List[int], Dict[str, Any], Activity], NoReturn]


@dataclass
class Kin:
    """A guard with its child, as the zygote knows them.

    :param to_guard: held as long as the guard shall live
    :param to_child: None once the child has its connection
    """

    guard: int
    slot: int
    to_guard: socket.socket
    to_child: Optional[socket.socket]


class Zygote:
    """Forks children and outlives them.

    :param control: messages from and to the keeper
    :param memory: for the children's :class:`.Activity`
    :param work: what a child does with its connections, error stream and traits
    :param rehearse: what makes later children quick, here and then in each of them
        while it waits for a worker; not before the first has its work
    """

    def __init__(
        self,
        control: socket.socket,
        memory: mmap.mmap,
        work: Work,
        rehearse: Callable[[], None],
    ) -> None:
        self._control, self._memory, self._work = control, memory, work
        self._rehearse, self._rehearsed = rehearse, False
        self._kin: Dict[int, Kin] = {}
        self._free = list(range(SLOTS))
        self._retired = False
        processes.become_subreaper()
        self._wake = processes.wake_on_child()
        self._spare: Optional[Kin] = self._fork()

    def run(self) -> None:
        """Serve until there is nobody to serve any more."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._retired or self._kin:
            lacking = self._spare is None and not self._retired
            ready = poll.poll(PAUSE_MILLISECONDS if lacking else None)
            if lacking and not ready:
                self._make_spare()
            for fd, _ in ready:
                if fd == self._wake.fileno():
                    processes.drain(self._wake)
                    self._reap()
                elif not self._told():
                    poll.unregister(self._control)
                    self._retire()

    def _make_spare(self) -> None:
        if not self._rehearsed:
            self._rehearse()
            self._rehearsed = True
        self._spare = self._fork()

    def _told(self) -> bool:
        """Take the keeper's message; False if there is no keeper any more."""
        received = messages.receive(self._control)
        if received is None:
            return False
        message, descriptors = received
        if message["kind"] == "serve":
            self._serve(message["traits"], descriptors)
        elif message["kind"] == "retire":
            self._retire()
        elif message["kind"] == "end":
            self._end()
        return True

    def _serve(self, traits: Dict[str, Any], descriptors: List[int]) -> None:
        """Give a worker's connection to the child that was forked in advance."""
        kin = self._spare or self._fork()
        tasks, answers, leash, errors = descriptors
        with contextlib.suppress(OSError):  # it was killed: the worker asks again
            messages.send(kin.to_guard, {"kind": "serve"}, [leash, tasks])
            if kin.to_child is not None:
                messages.send(kin.to_child, traits, [tasks, answers, errors])
                kin.to_child.close()
                kin.to_child = None
        messages.close(descriptors)
        self._spare = None  # another is forked when this one has begun

    def _retire(self) -> None:
        self._retired = True
        if self._spare is not None:
            self._spare.to_guard.close()
            self._spare = None
        for kin in self._kin.values():
            with contextlib.suppress(OSError):
                messages.send(kin.to_guard, {"kind": "retire"})

    def _end(self) -> None:
        self._retire()
        for kin in self._kin.values():
            kin.to_guard.close()

    def _reap(self) -> None:
        """Take note of guards that ended, and be one for those that were killed."""
        ended = processes.reap()
        for pid in ended.keys() & self._kin.keys():
            kin = self._kin.pop(pid)
            kin.to_guard.close()
            if kin.to_child is not None:
                kin.to_child.close()
            Activity(self._memory, kin.slot).empty()
            self._free.append(kin.slot)
            if self._spare is kin:
                self._spare = None
        if any(ended.values()):
            processes.kill_all(self._strays)

    def _strays(self) -> Set[int]:
        """What a guard that was killed has left to us."""
        return processes.descendants({os.getpid()}, spare=self._kin)

    def _fork(self) -> Kin:
        to_guard, assign = messages.pair()
        to_child, given = messages.pair()
        slot = self._free.pop(0) if self._free else 0
        guard = os.fork()
        if not guard:
            _last(lambda: self._be_kin(to_guard, to_child, assign, given, slot))
        assign.close()
        given.close()
        self._kin[guard] = kin = Kin(guard, slot, to_guard, to_child)
        return kin

    def _be_kin(
        self,
        to_guard: socket.socket,
        to_child: socket.socket,
        assign: socket.socket,
        given: socket.socket,
        slot: int,
    ) -> None:
        processes.forget_wake()
        for other in self._kin.values():
            other.to_guard.close()
            if other.to_child is not None:
                other.to_child.close()
        for end in (self._control, self._wake, to_guard, to_child):
            end.close()
        processes.become_subreaper()
        child = os.fork()
        if child:
            given.close()
            Guard(child, assign).run()
        assign.close()
        os.setsid()  # a signal to "its group" is not for the guard
        if self._rehearsed:  # memory is shared until it is written to
            self._rehearse()
        received = messages.receive(given)
        given.close()
        if received is not None:
            traits, descriptors = received
            self._work(descriptors, traits, Activity(self._memory, slot))


def _last(work: Callable[[], None]) -> NoReturn:
    """In a forked process: nothing of the zygote's is to run after this."""
    try:
        work()
    finally:
        os._exit(1)
