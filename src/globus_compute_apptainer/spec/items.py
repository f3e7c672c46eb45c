"""Fields that are a list or a text of lines: one shape for both. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind, text

#: Most entries in one field.
MAX_ITEMS = 500

#: ``(label, entry)``: the label is ``pip[2]`` in a list, ``pip[line 3]`` in a text.
Item = tuple[str, str]

# As pip reads requirements files: a '#' begins a comment at the start of a line or
# after a blank (pip.pypa.io, "Requirements File Format").
_COMMENT = re.compile(r"(^|\s)#.*$")


def checked(
    field: str,
    value: Json,
    lines: Callable[[str], Iterator[tuple[int, str]]],
    check: Callable[[str], str],
) -> tuple[str, ...]:
    """The entries of a field whose order has no meaning: checked, sorted, unique.

    :param lines: splits the text form into ``(line number from 1, entry)``
    :param check: returns the normal form of an entry or raises :class:`Refusal`
    :raises SpecError: naming the entry
    """
    normal = set()
    for label, entry in _items(field, value, lines):
        with blame(label, entry):
            normal.add(check(entry))
    return tuple(sorted(normal))


def _items(
    field: str, value: Json, lines: Callable[[str], Iterator[tuple[int, str]]]
) -> Iterator[Item]:
    if isinstance(value, str):
        entries = [(f"{field}[line {n}]", entry) for n, entry in lines(value)]
    elif isinstance(value, list):
        entries = list(_list_items(field, value))
    else:
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list of strings, or a text")
    bounded(field, len(entries))
    yield from entries


def _list_items(field: str, value: list[Json]) -> Iterator[Item]:
    for number, entry in enumerate(value):
        label = f"{field}[{number}]"
        with blame(label, entry):
            yield label, text(entry)


def bounded(field: str, count: int, limit: int = MAX_ITEMS) -> None:
    """Refuse a field with more than ``limit`` entries."""
    if count > limit:
        raise Refusal(f"has {count} entries; the limit is {limit}").at(field, "")


def requirement_lines(content: str) -> Iterator[tuple[int, str]]:
    """The logical lines of a requirements.txt: comments, blanks, continuations.

    A line that ends in a backslash goes on in the next one; a comment ends it.
    """
    pending, first = "", 0
    for number, line in _physical(content):
        first = first or number
        comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not comment:
            pending += line[:-1]
            continue
        entry = _COMMENT.sub("", pending if comment else pending + line).strip()
        if entry:
            yield first, entry
        pending, first = "", 0
    entry = _COMMENT.sub("", pending).strip()
    if entry:
        yield first, entry


def package_lines(content: str) -> Iterator[tuple[int, str]]:
    """The names in an apt.txt: separated by blanks or lines, with ``#`` comments."""
    for number, line in _physical(content):
        for entry in _COMMENT.sub("", line).split():
            yield number, entry


def _physical(content: str) -> Iterator[tuple[int, str]]:
    lines = content.removeprefix("\ufeff").split("\n")
    return ((n, line.removesuffix("\r")) for n, line in enumerate(lines, 1))
