"""The errors of this package: one root, few subclasses, fields instead of prose.

Runs everywhere (client, endpoint process, workers) and imports nothing of ours.
An error is made once, where the cause is known, and travels unchanged to the
person who can act on it: the scientist through ``future.exception()``, the admin
through ``gc-apptainer`` and the endpoint's log.
"""

from __future__ import annotations

import dataclasses
import errno
from typing import Any, Final

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def is_full(error: OSError) -> bool:
    """Whether there was no room, or no more than a quota allows."""
    return error.errno in _FULL


def is_refused(error: OSError) -> bool:
    """Whether permissions, or a read-only file system, were in the way."""
    return error.errno in _REFUSED


@dataclasses.dataclass(eq=False)
class ContainerError(Exception):
    """Root of every error that this package raises on purpose.

    :param message: what is wrong, one sentence, no trailing newline
    :param hint: what to do about it; empty where nothing useful can be said
    :param log: path of the full log on the endpoint's machine; empty if none
    :param code: stable kebab-case identifier, for programs

    Instances survive pickling with all their fields.
    """

    message: str
    hint: str = ""
    log: str = ""
    code: str = "container-error"

    def __str__(self) -> str:
        return self.render()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), _fields(self))

    def details(self) -> list[tuple[str, str]]:
        """The labelled lines between message and hint; subclasses add theirs."""
        return []

    def render(self) -> str:
        """The text that people read: message, details, hint and log path."""
        rows = [*self.details(), ("hint", self.hint), ("log", self.log)]
        lines = [f"{self.message} [{self.code}]"]
        lines += [f"  {label}: {text}" for label, text in rows if text]
        return "\n".join(lines)


@dataclasses.dataclass(eq=False)
class SpecError(ContainerError):
    """A container spec that cannot be accepted as written.

    :param field: the offending field (``pip[2]``), empty for the whole spec
    :param value: the offending value, shortened for display
    :param nearest: the valid name closest to a misspelt one
    """

    code: str = "spec-invalid"
    field: str = ""
    value: str = ""
    nearest: str = ""

    def details(self) -> list[tuple[str, str]]:
        nearest = f"{self.nearest!r}" if self.nearest else ""
        return [
            ("field", self.field),
            ("value", self.value),
            ("did you mean", nearest),
        ]


@dataclasses.dataclass(eq=False)
class PolicyError(SpecError):
    """A valid spec that this endpoint's policy does not allow."""

    code: str = "policy-denied"


@dataclasses.dataclass(eq=False)
class ConfigError(ContainerError, ValueError):
    """A ``containers:`` block that cannot be accepted as written.

    :param key: dotted path of the offending key (``build.timeout``)
    :param nearest: the valid key closest to a misspelt one
    """

    code: str = "config-invalid"
    key: str = ""
    nearest: str = ""

    def details(self) -> list[tuple[str, str]]:
        nearest = f"{self.nearest!r}" if self.nearest else ""
        return [("key", self.key), ("did you mean", nearest)]


@dataclasses.dataclass(eq=False)
class BuildError(ContainerError):
    """An image that could not be made.

    :param stage: where it failed (``resolve``, ``pull``, ``payload``, ``apt``,
        ``conda``, ``pip``, ``post``, ``pack``, ``probe``, ``policy``)
    :param command: the command that failed, as text
    :param tail: the last lines of its output (at most 60)
    """

    code: str = "build-failed"
    stage: str = ""
    command: str = ""
    tail: tuple[str, ...] = ()

    def details(self) -> list[tuple[str, str]]:
        tail = "".join(f"\n    | {line}" for line in self.tail)
        return [("stage", self.stage), ("command", self.command), ("output", tail)]


@dataclasses.dataclass(eq=False)
class StoreError(ContainerError):
    """An image cache that cannot be used, or an image that is not what it was.

    :param path: the file or directory concerned
    """

    code: str = "cache-unusable"
    path: str = ""

    def details(self) -> list[tuple[str, str]]:
        return [("path", self.path)]


@dataclasses.dataclass(eq=False)
class HostError(ContainerError):
    """This machine lacks something that containers need (Apptainer, a setting)."""

    code: str = "host-unsuitable"


@dataclasses.dataclass(eq=False)
class TaskError(ContainerError):
    """A task that could not run, or did not end, in its container.

    :param ended: how the container's process ended (``signal SIGSEGV``)
    :param tail: the last lines of its standard error
    """

    code: str = "container-crashed"
    ended: str = ""
    tail: tuple[str, ...] = ()

    def details(self) -> list[tuple[str, str]]:
        tail = "".join(f"\n    | {line}" for line in self.tail)
        return [("ended by", self.ended), ("stderr", tail)]


def internal(error: Exception) -> ContainerError:
    """What a person is told of an exception that nobody foresaw."""
    return ContainerError(
        f"the endpoint failed unexpectedly: {type(error).__name__}: {error}",
        hint="this is a fault of the endpoint; its log has the traceback",
        code="internal-error",
    )


def _fields(error: ContainerError) -> dict[str, Any]:
    return {f.name: getattr(error, f.name) for f in dataclasses.fields(error)}


def _rebuild(kind: type[ContainerError], fields: dict[str, Any]) -> ContainerError:
    return kind(**fields)
