"""What worker and child say to one another: a JSON object and bytes, over a stream.

Runs on both sides.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Callable, Dict, Optional, Tuple

SIZES = struct.Struct("!IQ")  # of header and body
CHUNK, AHEAD = 1 << 20, 1 << 16

Frame = Tuple[Dict[str, Any], bytes]


def write_frame(fd: int, header: Dict[str, Any], body: bytes = b"") -> None:
    """Write one frame: two sizes, a JSON object, bytes."""
    head = json.dumps(header).encode("ascii")
    first = SIZES.pack(len(head), len(body)) + head
    for part in (first + body,) if len(body) < CHUNK else (first, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def read_frame(read: Callable[[int], bytes]) -> Optional[Frame]:
    """Read one frame; None at the end of the stream.

    :param read: returns up to so many bytes, none at the end of the stream
    :raises EOFError: the stream ended inside a frame
    """
    start = read(SIZES.size)
    if not start:
        return None
    start += _read_exactly(read, SIZES.size - len(start))
    head_size, body_size = SIZES.unpack(start)
    header = json.loads(_read_exactly(read, head_size).decode("ascii"))
    return header, _read_exactly(read, body_size)


class Reader:
    """Reads ahead, so that a small frame costs one call.

    :param source: returns up to so many bytes, none at the end of the stream
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source, self._ahead = source, b""

    def __call__(self, size: int) -> bytes:
        found = self._ahead or self._source(max(size, AHEAD))
        self._ahead = found[size:]
        return found[:size]


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        parts.append(read(min(size, CHUNK)))
        if not parts[-1]:
            raise EOFError("the stream ended inside a frame")
        size -= len(parts[-1])
    return b"".join(parts)
