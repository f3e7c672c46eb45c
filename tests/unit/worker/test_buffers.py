"""Buffers are taken apart and put together as the SDK does it."""

from __future__ import annotations

import pytest
from globus_compute_sdk.serialize import (
    AllCodeStrategies,
    AllDataStrategies,
    CombinedCode,
    DillCode,
)
from globus_compute_sdk.serialize.utils import pack_buffers, unpack_buffers

from globus_compute_apptainer.worker import buffers

TEXTS = [[], ["a"], ["", "12\n3", "ü\U0001f600\ud800"], ["00\nx"] * 3]


def function(x):
    return {x: 1}


@pytest.mark.parametrize("parts", TEXTS)
def test_packing_is_the_sdks(parts: list[str]) -> None:
    packed = buffers.joined(parts)
    assert packed == pack_buffers(parts)
    assert buffers.split(packed) == parts == unpack_buffers(packed)


@pytest.mark.parametrize("text", ["x", "5\nabc", "-1\nabc", "1\nab", "²\nab", "\n"])
def test_what_was_not_packed_is_none(text: str) -> None:
    assert buffers.split(text) is None


def test_what_has_no_alternatives_is_kept_or_not() -> None:
    assert buffers.filtered("01\nabc", lambda _: True) == "01\nabc"
    assert buffers.filtered("01\nabc", lambda _: False) == ""
    assert buffers.filtered("12\nnonsense", lambda _: True) == "12\nnonsense"


@pytest.mark.parametrize("strategy", [AllCodeStrategies, CombinedCode, DillCode])
def test_keeping_all_changes_nothing(strategy) -> None:
    made = strategy().serialize(function)
    assert buffers.filtered(made, lambda _: True) == made
    assert buffers.filtered(made, lambda _: False) == ""


@pytest.mark.parametrize("strategy", [AllCodeStrategies, CombinedCode])
def test_one_alternative_can_be_kept_or_left_out(strategy) -> None:
    def is_bytecode(part: str) -> bool:
        return part.startswith(buffers.DILL_CODE)

    made = strategy().serialize(function)
    for kept in (
        buffers.filtered(made, is_bytecode),
        buffers.filtered(made, lambda part: not is_bytecode(part)),
    ):
        assert len(kept) < len(made)
        assert strategy().deserialize(kept)(2) == {2: 1}


def test_data_has_alternatives_too() -> None:
    made = AllDataStrategies().serialize([1, "x"])
    kept = buffers.filtered(made, lambda part: part.startswith(buffers.DILL_DATA))
    assert AllDataStrategies().deserialize(kept) == [1, "x"]
    assert buffers.JSON not in kept
