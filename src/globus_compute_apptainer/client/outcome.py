"""How the helpers of this package end: with a spec that is sound, or in clear words.

Pure, but for reading files.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import model


def checked(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` without what is empty, if any endpoint of this version would take it.

    :raises SpecError: none would, or nothing is asked for
    """
    given = {name: value for name, value in fields.items() if value}
    model.parse(given)
    return given


def refuse(problems: Sequence[str], where: str, hint: str) -> None:
    """One error for all that cannot be carried into a container; none if all can.

    :param problems: one line each
    :raises SpecError: ``source-unsupported``
    """
    if problems:
        listed = "".join(f"\n    {line}" for line in problems)
        raise SpecError(
            f"{where} has what a container spec cannot carry:{listed}",
            hint=hint,
            code="source-unsupported",
        )


def unreadable(where: str, reason: str, hint: str = "") -> SpecError:
    """The error for a file that is not what it should be."""
    return SpecError(
        f"{where} cannot be used: {reason}", hint=hint, code="source-unreadable"
    )


def text_of(path: Path) -> str:
    """A file's text.

    :raises SpecError: there is none
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(str(path), error.strerror or "it cannot be read") from None
    except UnicodeDecodeError:
        raise unreadable(str(path), "it is not UTF-8 text") from None


def toml(text: str, where: str) -> dict[str, Any]:
    """A TOML document.

    :raises SpecError: it is none, or this Python has no reader for it
    """
    for name in ("tomllib", "tomli"):
        try:
            reader = importlib.import_module(name)
        except ImportError:
            continue
        try:
            found: dict[str, Any] = reader.loads(text)
        except (ValueError, RecursionError) as error:
            raise unreadable(where, f"it is not TOML: {error}") from None
        return found
    raise unreadable(
        where, "Python 3.10 reads no TOML", "pip install tomli, or use a newer Python"
    )


def table(parent: dict[str, Any], *names: str, where: str) -> dict[str, Any]:
    """A table inside a document; empty if it is not there.

    :raises SpecError: something else is there
    """
    found: Any = parent
    for name in names:
        found = found.get(name, {})
        if not isinstance(found, dict):
            raise unreadable(where, f"{'.'.join(names)} is not a table")
    return dict(found)


def texts(parent: dict[str, Any], name: str, where: str) -> list[str]:
    """A list of texts inside a document; empty if it is not there.

    :raises SpecError: something else is there
    """
    found = parent.get(name, [])
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise unreadable(where, f"{name} is not a list of texts")
    return list(found)
