"""Pickles are read without running what they name."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.worker.inert import Inert, Reader


class Calls:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


class State:
    def __init__(self) -> None:
        self.value = {1: [2]}


def test_plain_values_are_read_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, b"x"], (1,): {"ü": {3}}}
    reader = Reader(pickle.dumps(value), {})
    assert reader.load() == value
    assert reader.unknown == []


def test_what_is_named_is_neither_imported_nor_called(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps([Calls(os.mkdir, str(made)), 1], protocol)
        reader = Reader(pickled, {})
        found, one = reader.load()
        assert isinstance(found, Inert) and one == 1
        assert [name for _, name in reader.unknown] == ["mkdir"]
    assert not made.exists()
    reader = Reader(b"cno.such.module\nname\n.", {})
    reader.load()
    assert reader.unknown == [("no.such.module", "name")]


def test_what_is_known_is_what_was_given() -> None:
    seen: list[Any] = []
    known = {("posix", "mkdir"): seen.append}
    Reader(pickle.dumps(Calls(os.mkdir, "x")), known).load()
    assert seen == ["x"]


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1, b=[2]),
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], 3),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        State(),
        {State(): State()},
        [State, State()],
        Calls(getattr, Calls(State), "value"),
    ],
)
def test_stand_ins_can_be_filled_and_called(value: Any) -> None:
    reader = Reader(pickle.dumps(value), {})
    reader.load()
    assert reader.unknown
