"""What a build tells while it runs.

Events are facts about the past, immutable, and cheap to make. Whoever wants them
passes a :data:`Sink`; the builder calls it from its own thread. A sink that raises
does not stop a build.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class StageStarted:
    """A build entered ``stage`` (see :class:`~.errors.BuildError`)."""

    digest: str
    stage: str


@dataclass(frozen=True)
class OutputLine:
    """One line of the build's output, without its newline, credentials removed."""

    digest: str
    line: str


@dataclass(frozen=True)
class Progress:
    """How far a stage is: ``done`` of ``total`` (None: unknown) in ``unit``.

    :param unit: ``bytes`` or ``packages``
    :param what: what it is about, such as a layer's digest; may be empty
    """

    digest: str
    stage: str
    done: int
    total: int | None
    unit: str
    what: str = ""


@dataclass(frozen=True)
class BuildFinished:
    """A build ended; ``error`` is the error's code, empty on success.

    :param seconds: wall-clock seconds from start to publication or failure
    """

    digest: str
    seconds: float
    error: str = ""


Event = Union[StageStarted, OutputLine, Progress, BuildFinished]
Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink of those who do not care."""
