"""Short messages with file descriptors, over sockets that keep messages apart.

Runs on both sides: between worker and keeper, keeper and zygote, zygote and its
children.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Dict, List, Optional, Sequence, Tuple

LONGEST = 1 << 17  # bytes
MOST_DESCRIPTORS = 8

Message = Tuple[Dict[str, Any], List[int]]


def pair() -> Tuple[socket.socket, socket.socket]:
    """Two connected sockets for messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    to: socket.socket, message: Dict[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send a message and copies of file descriptors.

    :raises OSError: nobody is left to take it
    """
    data = json.dumps(message).encode("ascii")
    if descriptors:
        socket.send_fds(to, [data], list(descriptors))
    else:
        to.send(data)


def receive(source: socket.socket, *, wait: bool = True) -> Optional[Message]:
    """The next message, and the descriptors with it, which are not inherited by
    programs; None at the end.

    :raises BlockingIOError: there is none yet, and we do not ``wait``
    :raises ValueError: it is none of ours
    """
    flags = 0 if wait else socket.MSG_DONTWAIT
    try:
        data, descriptors, _, _ = socket.recv_fds(
            source, LONGEST, MOST_DESCRIPTORS, flags
        )
    except ConnectionError:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return (json.loads(data.decode("ascii")), list(descriptors)) if data else None


def close(descriptors: Sequence[int]) -> None:
    """Close what came with a message; never fails."""
    for descriptor in descriptors:
        os.closerange(descriptor, descriptor + 1)
