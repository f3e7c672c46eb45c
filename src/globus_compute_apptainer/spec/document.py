"""YAML without surprises: from a text to plain JSON of texts. Pure.

Reads what people write into an ``environment.yml``, and not the rest of YAML: every
scalar is a text (``3.10`` stays ``3.10``, ``no`` stays ``no``), and anchors, aliases,
tags and several documents are refused, so that a small text stays a small tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from globus_compute_apptainer.spec.refusal import Json, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 6


def tree(content: str) -> Json:
    """The tree that a YAML (or JSON) text describes; None where it says nothing.

    :raises Refusal: it is not YAML, or holds what is not accepted here
    """
    try:
        import yaml  # noqa: PLC0415 - clients may lack it
    except ImportError:
        hint = "install pyyaml, or give it as an object"
        raise Refusal("is YAML, which cannot be read here", hint) from None
    try:
        return _Reader(yaml.parse(content, Loader=yaml.BaseLoader)).document()
    except yaml.YAMLError as error:
        raise Refusal(f"is not YAML: {_words(error)}") from None


def _words(error: Any) -> str:
    """The problem and its line; never the text itself."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    return f"{problem} (line {mark.line + 1})" if mark else str(problem)


def _joined(text: str, line: int) -> str:
    """With characters whole that JSON writes as two escapes."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise Refusal(f"is not valid Unicode (line {line})") from None


class _Reader:
    """Builds one tree from the parser's events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def document(self) -> Json:
        found: list[Json] = []
        for event in self._events:
            kind = type(event).__name__
            if kind.startswith(("Stream", "Document")):
                continue
            if found:
                raise Refusal("holds several YAML documents")
            found.append(self._node(event, 0))
        return found[0] if found else None

    def _node(self, event: Any, depth: int) -> Json:
        kind = type(event).__name__
        line = event.start_mark.line + 1
        if kind == "AliasEvent" or event.anchor is not None:
            hint = "write the part out where it is meant"
            raise Refusal(f"has a YAML anchor or alias (line {line})", hint)
        if event.tag not in (None, "!"):
            raise Refusal(f"has a YAML tag (line {line})")
        if kind == "ScalarEvent":
            return _joined(str(event.value), line)
        if depth >= MAX_DEPTH:
            raise Refusal(f"is nested too deeply (line {line})")
        return (
            self._mapping(depth)
            if kind == "MappingStartEvent"
            else self._sequence(depth)
        )

    def _sequence(self, depth: int) -> Json:
        return [self._node(event, depth + 1) for event in self._until("SequenceEnd")]

    def _mapping(self, depth: int) -> Json:
        found: dict[str, Json] = {}
        for event in self._until("MappingEnd"):
            key = self._node(event, depth + 1)
            line = event.start_mark.line + 1
            if not isinstance(key, str):
                raise Refusal(f"has a key that is not a text (line {line})")
            if key in found:
                raise Refusal(f"has the key {key[:40]!r} twice (line {line})")
            found[key] = self._node(next(self._events), depth + 1)
        return found

    def _until(self, end: str) -> Iterator[Any]:
        while not type(event := next(self._events)).__name__.startswith(end):
            yield event
