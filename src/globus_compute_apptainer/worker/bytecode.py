"""Which Python made the bytecode in a task, told without running it.

Runs in worker processes; pure, standard library only. Python's bytecode has no stable
form: what one minor version compiled makes another fail in odd ways, or crash. The
SDK's ``DillCode`` sends it, and says nothing of the version; so do pickled arguments
that hold functions. But the arguments from which ``dill`` makes a code object tell:

* their number: 16 up to Python 3.9, 17 in 3.10, 19 since 3.11;
* since 3.11 the first instructions, among them ``RESUME``, whose number has changed;
* between 3.11 and 3.12, where it has not, the instructions that only one of the two
  has, and the empty room (inline caches) that each leaves behind some of them.

Non-guarantees: code that looks the same in 3.11 and 3.12 passes for both (it has none
of the instructions that differ); bytecode of 3.14 cannot be told from that of later
versions; what cannot be read at all passes, for the SDK to complain of.
"""

from __future__ import annotations

import binascii
import functools
import itertools
from typing import Any, Final

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import buffers
from globus_compute_apptainer.worker.inert import Inert, Reader

Minors = frozenset[int]

NEWEST: Final = 14  # stands for all later ones, too
ANY: Final[Minors] = frozenset(range(NEWEST + 1))
LARGEST: Final = 256 * 1024
"""Longer arguments (characters) are not looked into: it takes as long as reading them
in the container does, and few are functions."""

_BY_NUMBER: Final = {16: frozenset(range(10)), 17: frozenset({10})}
_CODE_SINCE_311: Final = 7  # which of the 19 arguments are the instructions
# RESUME, and what may stand before it: COPY_FREE_VARS, MAKE_CELL, RETURN_GENERATOR,
# POP_TOP; none of them has an inline cache.
_STARTS: Final = {
    11: (151, {149, 135, 75, 1}),
    12: (151, {149, 135, 75, 1}),
    13: (149, {62, 94, 35, 32}),
    14: (128, {60, 97, 34, 31}),
}
# Opcodes with the number of two-byte words that belong to their inline caches.
_CACHES: Final = {
    11: {25: 4, 60: 1, 92: 1, 95: 4, 106: 4, 107: 2, 116: 5, 122: 1, 160: 10, 166: 1,
         171: 4},
    12: {25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1,
         141: 1, 171: 3},
}  # fmt: skip
# Opcodes that the other of the two does not have.
_ALIEN: Final = {
    11: {3, 4, 5, 17, 26, 27, 55, 121, 127, 141, 143, 150},
    12: {10, 70, 82, 84, 86, 88, 111, 112, 148, 160, 166},
}


def checked(task_buffer: str, python_version: str | None) -> str:
    """The buffer, less what the image's Python cannot read.

    A function that came as source, too, loses its bytecode only.

    :param task_buffer: function, arguments and keyword arguments, as the SDK packs them
    :param python_version: of the image (``3.11.2``); None: not known, and nothing is
        looked at
    :raises TaskError: nothing is left of a part (``bytecode-mismatch``)
    """
    minor = _minor(python_version)
    parts = None if minor is None else buffers.split(task_buffer)
    if minor is None or parts is None:
        return task_buffer
    kept = [_readable(part, minor) for part in parts[:1]]
    kept += [p if len(p) > LARGEST else _readable(p, minor) for p in parts[1:]]
    return task_buffer if kept == parts else buffers.joined(kept)


def makers(pickled: bytes) -> Minors:
    """The minor versions of Python 3 that may have made the bytecode in a pickle;
    :data:`ANY` if it has none, or none that can be read."""
    if b"_create_code" not in pickled:
        return ANY
    found: list[Minors] = []

    def code(*arguments: Any) -> Inert:
        found.append(_makers_of(arguments))
        return Inert()

    reader = Reader(pickled, {("dill._dill", "_create_code"): code})
    try:
        reader.load()
    except Exception:  # noqa: BLE001  # users send what they like; the SDK will tell
        return ANY
    return functools.reduce(frozenset.intersection, found, ANY) or ANY


@functools.cache
def _minor(version: str | None) -> int | None:
    major, _, rest = (version or "").partition(".")
    digits = rest.partition(".")[0]
    return min(int(digits), NEWEST) if major == "3" and digits.isdigit() else None


@functools.lru_cache(maxsize=16)  # the same function comes many times
def _readable(part: str, minor: int) -> str:
    """One of the three parts of a task, less foreign bytecode."""
    foreign: list[Minors] = []

    def is_readable(alternative: str) -> bool:
        made_by = _makers_in(alternative)
        if minor not in made_by:
            foreign.append(made_by)
        return minor in made_by

    kept = buffers.filtered(part, is_readable)
    if foreign and not kept:
        raise _mismatch(foreign[0], minor, data=part.startswith(buffers.DILL_DATA))
    return kept if foreign else part


def _makers_in(alternative: str) -> Minors:
    if not alternative.startswith((buffers.DILL_CODE, buffers.DILL_DATA)):
        return ANY
    try:
        return makers(binascii.a2b_base64(alternative[buffers.IDENTIFIER :]))
    except ValueError:
        return ANY


def _makers_of(arguments: tuple[Any, ...]) -> Minors:
    """Who may have made a code object with these arguments of ``_create_code``."""
    if len(arguments) < 19:
        return _BY_NUMBER.get(len(arguments), ANY)
    code = arguments[_CODE_SINCE_311]
    if not isinstance(code, bytes):
        return ANY
    words = [(code[at], code[at + 1]) for at in range(0, len(code) - 1, 2)]
    found = frozenset(minor for minor in _STARTS if _may_be_of(minor, words))
    return found or ANY


def _may_be_of(minor: int, words: list[tuple[int, int]]) -> bool:
    resume, before = _STARTS[minor]
    first = next((word for word in words if word[0] not in before), None)
    return first == (resume, 0) and (minor not in _CACHES or _fits(minor, words))


def _fits(minor: int, words: list[tuple[int, int]]) -> bool:
    """Whether all are instructions of that version, with room for their caches."""
    caches, alien = _CACHES[minor], _ALIEN[minor]
    rest = iter(words)
    for opcode, _ in rest:
        room = itertools.islice(rest, caches.get(opcode, 0))
        if opcode == 0 or opcode in alien or any(word != (0, 0) for word in room):
            return False
    return True


def _mismatch(made_by: Minors, minor: int, *, data: bool) -> TaskError:
    what = "an argument holds a function that" if data else "the function"
    image = f"3.{minor}" + (" or newer" if minor == NEWEST else "")
    return TaskError(
        f"{what} was sent as bytecode of Python {_named(made_by)}, which the image's"
        f" Python {image} cannot run",
        hint="ask for an image with your Python (`python` in the container spec), or"
        " send the function's source:"
        " `Executor(serializer=ComputeSerializer(strategy_code=AllCodeStrategies()))`",
        code="bytecode-mismatch",
    )


def _named(made_by: Minors) -> str:
    lowest, highest = min(made_by), max(made_by)
    if highest <= 9:
        return "3.9 or older"
    if lowest == NEWEST:
        return f"3.{NEWEST} or newer"
    return " or ".join(f"3.{minor}" for minor in sorted(made_by))
