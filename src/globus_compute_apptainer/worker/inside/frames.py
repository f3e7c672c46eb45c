"""What worker and child say to one another: a number, JSON and bytes, over a stream.

Runs on both sides.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Callable, Dict, NamedTuple, Optional

SIZES = struct.Struct("!QIQ")  # number; sizes of head and body
CHUNK, AHEAD = 1 << 20, 1 << 16


def packed(header: Dict[str, Any]) -> bytes:
    """A JSON object, as the head of a frame."""
    return json.dumps(header).encode("ascii")


HELLO = packed({"kind": "hello"})
DONE = packed({"kind": "result", "error": None})


class Frame(NamedTuple):
    """One thing that is said.

    :param number: of the task that it is about
    :param head: of :func:`packed`, or made by another who writes to the stream
    """

    number: int
    head: bytes
    body: bytes = b""

    @property
    def header(self) -> Dict[str, Any]:
        """What is in the head.

        :raises ValueError: that is no JSON object
        """
        found = json.loads(self.head.decode("ascii"))
        if not isinstance(found, dict):
            raise ValueError("the head of a frame is no JSON object")
        return found


def write_frame(fd: int, frame: Frame) -> None:
    """Write one frame, all of it."""
    number, head, body = frame
    first = SIZES.pack(number, len(head), len(body)) + head
    for part in (first + body,) if len(body) < CHUNK else (first, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


class Reader:
    """Reads frames, and ahead, so that a small one costs one call.

    :param source: returns up to so many bytes, none at the end of the stream
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source, self._ahead = source, b""

    def frame(self) -> Optional[Frame]:
        """The next one; None at the end of the stream.

        :raises EOFError: the stream ended inside a frame
        """
        found = self._ahead or self._source(AHEAD)
        if not found:
            return None
        while len(found) < SIZES.size:
            found += self._more(AHEAD)
        number, head_size, body_size = SIZES.unpack_from(found)
        head_end = SIZES.size + head_size
        end = head_end + body_size
        if len(found) < end:
            found = self._all(found, end)
        self._ahead = found[end:]
        return Frame(number, found[SIZES.size : head_end], found[head_end:end])

    def _all(self, found: bytes, size: int) -> bytes:
        """So many bytes, of which some are there; not one more."""
        parts, missing = [found], size - len(found)
        while missing:
            parts.append(self._more(min(missing, CHUNK)))
            missing -= len(parts[-1])
        return b"".join(parts)

    def _more(self, size: int) -> bytes:
        part = self._source(size)
        if not part:
            raise EOFError("the stream ended inside a frame")
        return part
