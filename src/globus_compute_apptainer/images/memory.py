"""Which failures are remembered, for how long, and what is said when one is.

Runs in the endpoint process and in ``gc-apptainer``. A thousand tasks with a misspelt
package should cost one build, on all endpoints that share a cache; and a network that
is down should be asked again soon, but not by everybody at once. A failure counts for
those only who would meet the same: the same user, with the same settings for builds.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from globus_compute_apptainer import errors
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.store.failures import Failures


class Kind(enum.Enum):
    """Why a build failed, as far as it matters for trying again."""

    LASTING = "what was asked for is wrong, or not to be had"
    PASSING = "something did not answer, or it is not known what happened"
    UNRELATED = "this machine, or somebody's decision: it says nothing of the spec"


LASTING_SECONDS: Final = 3600.0
FIRST_SECONDS: Final = 30.0
"""Of a passing failure; twice as long after each further one."""
MOST_SECONDS: Final = 600.0

_LASTING: Final = frozenset(
    "package-not-found package-conflict package-refused hash-mismatch no-glibc"
    " base-not-found base-unsuitable digest-mismatch channel-not-found"
    " no-python no-pip no-apt python-mismatch"
    " payload-not-found payload-invalid payload-changed".split()
)
_PASSING: Final = frozenset(
    "build-failed build-timeout registry-unreachable index-unreachable"
    " payload-unreachable".split()
)
_HINT: Final = (
    "this failure is remembered from {age} ago and is not tried again for {left}; to"
    " have it tried now, attach the spec with `refresh: 1s`, or run gc-apptainer build"
    " --fresh"
)


def kind_of(error: ContainerError) -> Kind:
    """What an error says of the spec; policy and sizes are each endpoint's own."""
    if error.code in _LASTING:
        return Kind.LASTING
    return Kind.PASSING if error.code in _PASSING else Kind.UNRELATED


def seconds(kind: Kind, times: int) -> float:
    """How long a failure is remembered that came ``times`` in a row."""
    if kind is Kind.LASTING:
        return LASTING_SECONDS
    if kind is Kind.PASSING:
        return float(min(FIRST_SECONDS * 2 ** min(times - 1, 30), MOST_SECONDS))
    return 0.0


class Memory:
    """The failures that concern one service.

    :param scope: tells who would meet the same failures from others
    :param now: UTC; machines whose clocks differ remember by so much longer or shorter
    """

    def __init__(
        self, failures: Failures, scope: str, now: Callable[[], datetime]
    ) -> None:
        self._failures, self._scope, self._now = failures, scope, now

    def recall(
        self, spec_digest: str, max_age: float | None = None
    ) -> ContainerError | None:
        """The error that is not to be tried again yet, with a hint that says so.

        :param max_age: seconds after which it counts as too old; None: any
        """
        told = self._read(spec_digest)
        if told is None:
            return None
        age = self._now().timestamp() - told.at
        left = seconds(kind_of(told.error), told.times) - age
        if age < 0 or left <= 0 or (max_age is not None and age > max_age):
            return None
        note = _HINT.format(age=_words(age), left=_words(left))
        hint = f"{told.error.hint}\n        {note}" if told.error.hint else note
        return dataclasses.replace(told.error, hint=hint)

    def remember(self, spec_digest: str, error: ContainerError) -> None:
        """Keep a failure, if it is of a kind that is kept."""
        if kind_of(error) is Kind.UNRELATED:
            return
        before, at = self._read(spec_digest), self._now().timestamp()
        in_a_row = before is not None and abs(at - before.at) < LASTING_SECONDS
        told = {
            "scope": self._scope,
            "at": at,
            "times": before.times + 1 if before and in_a_row else 1,
            "type": type(error).__name__,
            "error": dataclasses.asdict(error),
        }
        self._failures.write(spec_digest, told)

    def forget(self, spec_digest: str) -> None:
        """It has been built."""
        self._failures.forget(spec_digest)

    def _read(self, spec_digest: str) -> _Told | None:
        raw = self._failures.read(spec_digest)
        if raw is None or raw.get("scope") != self._scope:
            return None
        try:
            return _Told(float(raw["at"]), int(raw["times"]), _error(raw))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclasses.dataclass(frozen=True)
class _Told:
    """A failure as it was written down.

    :param times: in a row
    """

    at: float
    times: int
    error: ContainerError


def _error(raw: Mapping[str, Any]) -> ContainerError:
    """:raises TypeError: (or the like) it is no error of this version"""
    kind = getattr(errors, raw["type"])
    if not (isinstance(kind, type) and issubclass(kind, ContainerError)):
        raise TypeError
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in raw["error"].items()
    }
    error: ContainerError = kind(**fields)
    return error


def _words(span: float) -> str:
    """Such as ``40 s``, ``3 min``."""
    return f"{span:.0f} s" if span < 90 else f"{span / 60:.0f} min"
