"""What a file of requirements says, whichever format it is in. Pure."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from globus_compute_apptainer.spec.refusal import Refusal

_HASH = re.compile(
    r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}", re.IGNORECASE
)


@dataclass(frozen=True)
class Listed:
    """Python packages, and what goes with them; each part sorted and without doubles.

    :param pip: requirements in normal form
    :param constraints: requirements that hold for whatever gets installed
    :param projects: what to install from the tree itself: paths relative to its root,
        ``.`` or ``./PATH``, perhaps with ``[extras]``
    :param hashes: ``(requirement, (algorithm:hex, …))``: the files that it may be.
        Where there are any, the requirements are a complete list
    :param notes: sentences for the log, on what was read and ignored
    """

    pip: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    hashes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()


class Listing:
    """A :class:`Listed` that is being collected."""

    def __init__(self) -> None:
        self.pip: set[str] = set()
        self.constraints: set[str] = set()
        self.projects: set[str] = set()
        self.hashes: dict[str, set[str]] = {}
        self.notes: set[str] = set()

    def require(self, requirement: str, hashes: list[str]) -> None:
        """:raises Refusal: a hash is none that packages are checked with, or of a
        requirement that several versions meet
        """
        self.pip.add(requirement)
        if hashes:
            named = requirement.partition(";")[0]
            if "==" not in named and " @ " not in named:
                raise Refusal("has a hash but no exact version", "pin it with ==")
            self.hashes.setdefault(requirement, set()).update(map(checked_hash, hashes))

    def listed(self) -> Listed:
        return Listed(
            tuple(sorted(self.pip)),
            tuple(sorted(self.constraints)),
            tuple(sorted(self.projects)),
            tuple(
                (name, tuple(sorted(of))) for name, of in sorted(self.hashes.items())
            ),
            tuple(sorted(self.notes)),
        )


def checked_hash(written: str) -> str:
    """:raises Refusal: it is not ``sha256:…`` or one of its larger kin"""
    if not _HASH.fullmatch(written):
        hint = "as in --hash=sha256: and 64 hexadecimal digits"
        raise Refusal("has a hash of a kind that is not accepted", hint)
    return written.lower()


def toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file.

    :raises Refusal: it is not TOML
    """
    try:
        # Here, since clients on Python 3.10 may lack it.
        if sys.version_info >= (3, 11):
            import tomllib  # noqa: PLC0415
        else:
            import tomli as tomllib  # noqa: PLC0415
    except ImportError:
        raise Refusal("is TOML, which cannot be read here", "install tomli") from None
    try:
        tables: dict[str, Any] = tomllib.loads(text)
        return tables
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        words = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise Refusal(f"is not TOML: {words[:120]}") from None
