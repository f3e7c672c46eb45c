"""From any Python object to plain JSON of bounded size, or a clear error.

Pure. Everything behind this module may rely on exact built-in types, finite numbers,
strings that UTF-8 can encode, and a depth and size that are safe to walk.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

from globus_compute_apptainer.spec.refusal import Json, Refusal, show

#: Largest spec, in bytes of its compact ASCII JSON form. The spec travels in an AMQP
#: header, which shares one frame with the broker's other headers.
MAX_SPEC_BYTES = 48 * 1024

#: Deepest nesting; the spec itself is at depth 0. No field needs more than 2.
MAX_DEPTH = 6

_MAX_INT_BITS = 64
_LONGEST_NAME = 64
_TOO_LARGE = "ask the endpoint's administrator to name the image, and send its name"


def plain(raw: object) -> dict[str, Json]:
    """A deep copy of ``raw`` in built-in types; a tuple becomes a list.

    Never calls code of the objects it is given (no ``__repr__``, no ``__eq__``), and
    does work in proportion to :data:`MAX_SPEC_BYTES`, whatever it is given.

    :raises SpecError: ``raw`` is not an object of JSON values (``spec-invalid``), or
        is larger than :data:`MAX_SPEC_BYTES` (``spec-too-large``)
    """
    if not issubclass(type(raw), dict):
        hint = 'for example {"pip": ["pandas"]}'
        raise Refusal(f"is {_name(raw)}; expected an object", hint).at("", "")
    tree = _Copier().copy(raw, "", 0)
    encoded = json.dumps(tree, separators=(",", ":"))
    if len(encoded) > MAX_SPEC_BYTES:
        raise _too_large(f"{len(encoded)} bytes")
    assert isinstance(tree, dict)  # noqa: S101 - for the type checker
    return tree


class _Copier:
    """Copies one tree and counts, from below, the bytes its JSON form will take."""

    def __init__(self) -> None:
        self._left = MAX_SPEC_BYTES

    def copy(self, node: object, path: str, depth: int) -> Json:
        self._spend(1)
        kind = type(node)
        if node is None or kind is bool:
            return cast("bool | None", node)
        if issubclass(kind, str):
            return self._string(str.__str__(node), path)
        if issubclass(kind, (int, float)):
            return _number(node, path)
        if depth > MAX_DEPTH:
            raise Refusal("is nested too deeply").at(path[:100], "")
        if issubclass(kind, dict):
            return self._dict(cast("dict[object, object]", node), path, depth)
        if issubclass(kind, (list, tuple)):
            return self._list(cast("list[object]", node), path, depth)
        reason = f"is {_name(node)}, which JSON cannot carry"
        raise Refusal(reason, "use strings, lists and objects").at(path, "")

    def _dict(
        self, node: dict[object, object], path: str, depth: int
    ) -> dict[str, Json]:
        self._spend(dict.__len__(node))
        copied: dict[str, Json] = {}
        for key, value in list(dict.items(node)):
            if not issubclass(type(key), str):
                raise Refusal(f"has a key that is {_name(key)}, not a string").at(
                    path, ""
                )
            name = self._string(str.__str__(key), path)
            if name in copied:
                raise Refusal("has the same key twice").at(path, show(name))
            copied[name] = self.copy(value, _join(path, name), depth + 1)
        return copied

    def _list(self, node: list[object], path: str, depth: int) -> list[Json]:
        base: Any = tuple if issubclass(type(node), tuple) else list
        self._spend(base.__len__(node))
        items = list(base.__iter__(node))
        return [self.copy(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(items)]

    def _string(self, text: str, path: str) -> str:
        self._spend(len(text))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise Refusal("is not valid Unicode").at(path, "") from None
        return text

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _too_large(f"more than {MAX_SPEC_BYTES} bytes")


def _number(node: object, path: str) -> int | float:
    if issubclass(type(node), int):
        whole = int.__int__(cast("int", node))
        if whole.bit_length() > _MAX_INT_BITS:
            raise Refusal("is a number that is too large").at(path, "")
        return whole
    number = float.__float__(cast("float", node))
    if not math.isfinite(number):
        raise Refusal("is not a number that JSON can carry").at(path, repr(number))
    return number


def _join(path: str, name: str) -> str:
    if len(name) <= _LONGEST_NAME and name.isidentifier():
        return f"{path}.{name}" if path else name
    return f"{path}[{show(name)}]"


def _name(node: object) -> str:
    """The type of an arbitrary object, in words that cannot run its code."""
    if node is None:
        return "null"
    words = {str: "a string", list: "a list", int: "a number", bytes: "bytes"}
    kind = type(node)
    # A metaclass may override __name__, hence the descriptor of `type` itself.
    return words.get(kind) or f"a Python {type.__dict__['__name__'].__get__(kind)[:60]}"


def _too_large(size: str) -> Exception:
    reason = f"takes {size} as JSON; the limit is {MAX_SPEC_BYTES}"
    return Refusal(reason, _TOO_LARGE, code="spec-too-large").at("", "")
