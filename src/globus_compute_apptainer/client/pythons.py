"""Which minor version of Python a ``requires-python`` is to mean. Pure."""

from __future__ import annotations

import sys
from typing import Final

from globus_compute_apptainer.client.outcome import unreadable
from globus_compute_apptainer.errors import SpecError

_MINORS: Final = range(8, 30)
_MICROS: Final = range(40)


def running() -> str:
    """The minor version of this Python, such as ``3.11``."""
    return ".".join(map(str, sys.version_info[:2]))


def chosen(requires: str, where: str, preferred: str | None = None) -> str:
    """The minor version to ask for.

    That is ``preferred`` (by default this Python's own, since functions that travel
    as bytecode need it) where ``requires`` lets it, else the lowest one that it lets.
    Micro versions cannot be asked for: of ``>=3.11.4`` it is known only that some
    3.11 would do.

    :param requires: as ``>=3.10,<3.13``; empty: any
    :raises SpecError: no version will do, or not ``preferred`` where it was given
    """
    from packaging.specifiers import (  # noqa: PLC0415 - not every client needs it
        InvalidSpecifier,
        SpecifierSet,
    )

    try:
        allowed = SpecifierSet(requires)
    except InvalidSpecifier:
        raise unreadable(where, f"requires-python is {requires!r}") from None

    def lets(minor: str) -> bool:
        return any(allowed.contains(f"{minor}.{micro}") for micro in _MICROS)

    if preferred is not None:
        if not lets(preferred):
            raise _wrong(where, requires, f"Python {preferred} is asked for")
        return preferred
    for minor in (running(), *(f"3.{number}" for number in _MINORS)):
        if lets(minor):
            return minor
    raise _wrong(where, requires, "no version of Python is that")


def _wrong(where: str, requires: str, but: str) -> SpecError:
    return SpecError(
        f"{where} needs Python {requires}, but {but}",
        code="python-mismatch",
        field="python",
    )
