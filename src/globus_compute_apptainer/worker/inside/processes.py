"""Finding and ending the processes that a task leaves behind.

Runs on both sides. A *subreaper* becomes the parent of whatever its descendants
orphan, so that all they ever started stays below it in the tree of processes, in
whatever session or namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import Callable, Collection, Dict, List, Set, Tuple

LOOKS, PAUSE_SECONDS, PR_SET_CHILD_SUBREAPER = 100, 0.01, 36


def become_subreaper() -> None:
    """Adopt what descendants orphan; best effort, where Python lacks ``ctypes``."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(ancestors: Set[int], spare: Collection[int] = ()) -> Set[int]:
    """The living processes below some others, without those themselves.

    :param spare: processes to leave out, with all below them, and with all that are
        in a session which one of them leads, whoever is their parent
    """
    children: Dict[int, List[int]] = {}
    for pid, (parent, session) in _living().items():
        if session not in spare or pid in spare:
            children.setdefault(parent, []).append(pid)
    found: Set[int] = set()
    below = list(ancestors)
    while below:
        new = set(children.get(below.pop(), ())) - found - set(spare)
        found |= new
        below.extend(new)
    return found - ancestors


def kill_all(find: Callable[[], Set[int]]) -> None:
    """Kill what is found; gives up on what is stuck."""
    for _ in range(LOOKS):  # processes may be born while we look
        found = find()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):  # gone, or not ours
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def reap() -> Dict[int, int]:
    """Collect the children that have ended, and their wait statuses."""
    ended: Dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = status
    return ended


def childless() -> bool:
    """Whether this process has no children, living or ended, at all."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def wake_on_child() -> socket.socket:
    """A socket that can be read when a child has ended; main thread only."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    return reader


def drain(wake: socket.socket) -> None:
    """Take what made it readable."""
    with contextlib.suppress(BlockingIOError):
        while wake.recv(4096):
            pass


def forget_wake() -> None:
    """In a forked child: signals are its own again."""
    writer = signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if writer >= 0:
        os.close(writer)


def _living() -> Dict[int, Tuple[int, int]]:
    """Parents and sessions of the processes that are not zombies."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open("/proc/%s/stat" % name, "rb") as file:
                    after_name = file.read().rpartition(b")")[2]
                state, parent, _, session = after_name.split()[:4]
                if state not in b"ZX":
                    found[int(name)] = int(parent), int(session)
    return found
