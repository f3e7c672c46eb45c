"""The text that carries a task: three buffers, some of them with alternatives.

Runs in worker processes; pure. The SDK packs a function, its arguments and its keyword
arguments, each with the identifier of the strategy that made it. Three strategies hold
the same thing several times over, for the reader to take the first that it can read:
``CombinedCode``, ``AllCodeStrategies`` and ``AllDataStrategies``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTIFIER: Final = 3
"""Characters of an identifier."""

DILL_CODE: Final = "01\n"
DILL_DATA: Final = "00\n"
JSON: Final = "11\n"
_COMBINED: Final = "10\n"  # identifier, colon, text, colon, identifier …
_PACKED: Final = ("12\n", "13\n")  # every one with its length before it


def split(packed: str) -> list[str] | None:
    """What :func:`joined` was given; None if it was not."""
    parts, at = [], 0
    while at < len(packed):  # without a copy of the rest: some are megabytes
        begin = packed.find("\n", at) + 1
        length = packed[at : begin - 1] if begin else ""
        if not (length.isdigit() and length.isascii()):
            return None
        at = begin + int(length)
        parts.append(packed[begin:at])
    return parts if at == len(packed) else None


def joined(parts: list[str]) -> str:
    """Texts in one, as the SDK packs them."""
    return "".join(f"{len(part)}\n{part}" for part in parts)


def filtered(buffer: str, wanted: Callable[[str], bool]) -> str:
    """A buffer with those of its alternatives that are wanted; ``""`` if none is.

    :param wanted: is given an alternative, its identifier first. In ``CombinedCode`` a
        colon stands after that, which base 64 passes over.
    """
    kind, body = buffer[:IDENTIFIER], buffer[IDENTIFIER:]
    if kind == _COMBINED:
        words = body.split(":")
        pairs = [":".join(words[at : at + 2]) for at in range(0, len(words), 2)]
        kept = [pair for pair in pairs if wanted(pair)]
        return kind + ":".join(kept) if kept else ""
    parts = split(body) if kind in _PACKED else None
    if parts is None:
        return buffer if wanted(buffer) else ""
    kept = [part for part in parts if wanted(part)]
    return kind + joined(kept) if kept else ""
