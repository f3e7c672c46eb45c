"""One package as a lock file names it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Pin:
    """A package, and what is to be written behind its name.

    :param name: normalised (PEP 503)
    :param source: ``==VERSION``, or `` @ URL``; empty for what cannot be carried
    :param problem: why it cannot
    """

    name: str
    source: str
    problem: str = ""
