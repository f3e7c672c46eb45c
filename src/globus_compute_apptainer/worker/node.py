"""What the workers of a node share, from one worker's side: asking the keeper.

Runs in worker processes. The first worker that needs a container starts the keeper
(:mod:`.keeper`); those that come at the same time wait for it. Every request has a
connection of its own, so that nothing here belongs to a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.worker import place
from globus_compute_apptainer.worker.inside import messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from globus_compute_apptainer.worker.launch import Launch
    from globus_compute_apptainer.worker.order import ContainerOrder

LOOK_SECONDS: Final = 0.25
MARGIN_SECONDS: Final = 15.0  # for the keeper to say that something was late
ATTEMPTS: Final = 3

_BOOT: Final = """\
import sys
sys.path[0] = sys.argv.pop(1)
from globus_compute_apptainer.worker.keeper.__main__ import main
main()
"""


@dataclass(frozen=True)
class Bounds:
    """How a container is kept.

    :param start_timeout: seconds that it may take to start
    :param idle_timeout: seconds without a task after which it ends
    :param warm_per_node: how many the node keeps, this one included
    :param warm_memory: bytes that they may take together; None: half of its memory
    """

    start_timeout: float = 120.0
    idle_timeout: float = 300.0
    warm_per_node: int = 16
    warm_memory: int | None = None

    @classmethod
    def of(cls, order: ContainerOrder) -> Bounds:
        return cls(
            order.start_timeout,
            order.idle_timeout,
            order.warm_per_node,
            order.warm_memory,
        )


Prepare = Callable[[], AbstractContextManager[tuple["Launch", Sequence[int]]]]
"""Makes ready what starts a container. Inside, it is sent; with it go descriptors that
the container holds for as long as it lives."""


class KeeperGoneError(Exception):
    """The keeper ended, or ends, instead of answering."""


class Node:
    """Asks the keeper of a pool.

    :param pool: finds out whose worker this is
    """

    def __init__(
        self, pool: Callable[[], place.Pool] = place.Pool.of_this_process
    ) -> None:
        self._pool = pool

    def ask(
        self,
        key: str,
        prepare: Prepare,
        bounds: Bounds,
        traits: Mapping[str, Any],
        descriptors: Sequence[int],
        give_up: Callable[[], bool],
    ) -> dict[str, Any]:
        """Have a child attached to ``descriptors``; blocks until it is.

        :param key: run identity: requests with the same one share a container
        :param prepare: asked only where the node has no such container
        :param descriptors: connections for tasks and answers, leash and error stream
            for the child
        :param give_up: asked now and then
        :returns: the keeper's answer, ``given`` or ``failed``
        :raises KeeperGoneError: it ended, or we gave up
        :raises HostError: there is no place for a keeper (``no-node-folder``)

        What ``prepare`` raises is passed on.
        """
        request = {
            "key": key,
            "traits": dict(traits),
            "start_timeout": bounds.start_timeout,
            "idle_timeout": bounds.idle_timeout,
            "warm_per_node": bounds.warm_per_node,
            "warm_memory": bounds.warm_memory,
        }
        limit = bounds.start_timeout + MARGIN_SECONDS

        def exchange(given: Sequence[int], *, anew: bool) -> dict[str, Any]:
            try:
                keeper, is_new = self._connected()
                with contextlib.closing(keeper):
                    if is_new and not anew:  # it starts while we prepare
                        return {"kind": "unknown"}
                    messages.send(keeper, request, given)
                    return _answer(keeper, time.monotonic() + limit, give_up)
            except OSError as error:
                raise KeeperGoneError(str(error)) from error

        with contextlib.suppress(KeeperGoneError):
            answer = exchange(descriptors, anew=False)
            if answer["kind"] != "unknown":
                return answer
        with contextlib.ExitStack() as stack:
            launch, held = stack.enter_context(prepare())
            program = {"argv": launch.argv, "env": launch.env, "folder": launch.folder}
            payload = _in_memory(json.dumps(program).encode())
            stack.callback(os.close, payload)
            for _ in range(ATTEMPTS - 1):
                with contextlib.suppress(KeeperGoneError):
                    return exchange([*descriptors, payload, *held], anew=True)
                if give_up():
                    break
            return exchange([*descriptors, payload, *held], anew=True)

    def _connected(self) -> tuple[socket.socket, bool]:
        """A connection to the keeper, started if there is none, and whether it was."""
        pool = self._pool()
        folder = place.folder(pool)
        address = str(folder / place.SOCKET)
        keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            keeper.connect(address)
            return keeper, False
        place.make(folder)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_new = keeper.connect_ex(address) != 0
            if is_new:
                place.sweep(folder)
                _start_keeper(folder, address, pool)
                keeper.connect(address)
        return keeper, is_new


def _start_keeper(folder: Path, address: str, pool: place.Pool) -> None:
    """Start one; it can be connected to at once. Under the folder's lock."""
    with contextlib.suppress(FileNotFoundError):
        Path(address).unlink()
    source = str(Path(__file__).resolve().parents[2])
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        (folder / "keeper.log").open("ab") as log,
    ):
        listener.bind(address)
        listener.listen(1024)
        arguments = [str(folder), str(pool.pid), str(pool.start)]
        process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-c", _BOOT, source, *arguments],
            stdin=listener.fileno(),
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    process.returncode = 0  # not ours to wait for: it outlives this worker


def _in_memory(content: bytes) -> int:
    """A descriptor of a file without a name."""
    descriptor = os.memfd_create("gc-apptainer")
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _answer(
    keeper: socket.socket, deadline: float, give_up: Callable[[], bool]
) -> dict[str, Any]:
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    while not poll.poll(LOOK_SECONDS * 1000):
        if give_up():
            raise KeeperGoneError("nobody is left to run tasks for")
        if time.monotonic() > deadline:
            raise KeeperGoneError("the node's keeper of containers does not answer")
    received = messages.receive(keeper)
    if received is None:
        raise KeeperGoneError("the node's keeper of containers ended")
    return received[0]
