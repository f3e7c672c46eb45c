"""How a part of a spec is refused, and how its value is shown.

Pure. Validators know what is wrong but not where they were called from: they raise
:class:`Refusal`, and :func:`blame` turns it into a :class:`~..errors.SpecError` that
names the field as the user wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

from globus_compute_apptainer.errors import SpecError

#: What JSON can say (numbers are finite here, see :mod:`.plain`).
Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]

#: Longest text, in characters, that an error quotes from a spec.
SHOWN = 80

_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Refusal(Exception):  # noqa: N818 - a verdict that never leaves this package
    """A value that cannot be accepted.

    :param reason: the rest of the sentence that begins with the field's name
    :param hint: what to write instead; may be empty
    :param nearest: the valid word closest to a misspelt one; may be empty
    :param code: see :class:`~..errors.SpecError`
    """

    def __init__(
        self, reason: str, hint: str = "", *, nearest: str = "", code: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.nearest = nearest
        self.code = code or "spec-invalid"

    def at(self, field: str, value: str) -> SpecError:
        """The error to raise: this refusal, said about ``field``.

        :param field: as the user wrote it (``pip[2]``); empty for the whole spec
        :param value: as :func:`show` gives it; empty to keep it secret
        """
        return SpecError(
            f"{field or 'the container spec'} {self.reason}",
            hint=self.hint,
            code=self.code,
            field=field,
            value=value,
            nearest=self.nearest,
        )


@contextmanager
def blame(field: str, value: Json = None) -> Iterator[None]:
    """Refusals inside are about ``value``, which stands at ``field``."""
    try:
        yield
    except Refusal as refusal:
        raise refusal.at(field, "" if value is None else show(value)) from None


def kind(value: Json) -> str:
    """What ``value`` is, in words: ``a string``, ``an object``, ``null``."""
    return _KINDS.get(type(value), "null")


def show(value: Json) -> str:
    """``value`` for an error: one line, at most about 80 characters, escaped.

    Credentials in URLs are left out: errors are logged.
    """
    if isinstance(value, dict):
        return f"{{…}} ({len(value)} fields)"
    if isinstance(value, list):
        return f"[…] ({len(value)} items)"
    if not isinstance(value, str):
        return json.dumps(value)
    safe = _without_credentials(value)
    return repr(safe if len(safe) <= SHOWN else safe[: SHOWN - 1] + "…")


def _without_credentials(url: str) -> str:
    """Without all that stands between the first ``//`` and the last ``@``."""
    begin, end = url.find("//"), url.rfind("@")
    return f"{url[:begin]}//***{url[end:]}" if 0 <= begin < end else url


def text(value: Json, hint: str = "") -> str:
    """``value``, which must be a string, without the blanks around it; not empty."""
    if not isinstance(value, str):
        raise Refusal(f"is {kind(value)}; expected a string", hint)
    stripped = value.strip()
    if not stripped:
        raise Refusal("is empty", hint)
    return stripped
