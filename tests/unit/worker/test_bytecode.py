"""Whose bytecode it is, told from what dill made of it."""

from __future__ import annotations

import argparse
import binascii
import codecs
import email.message
import platform
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import dill
import pytest
from globus_compute_sdk.serialize import (
    AllCodeStrategies,
    CombinedCode,
    ComputeSerializer,
    DillCode,
    PureSourceDill,
    PureSourceTextInspect,
)

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import buffers, bytecode

OWN = sys.version_info[1]


class Code:
    """Is pickled as dill pickles a code object with these arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return dill._dill._create_code, self.arguments


def code_of(minor: int, instructions: bytes) -> Code:
    """What dill makes of a code object on that Python."""
    first = (1, 0, 0, 1, 2, 3, instructions, (None,), (), ("x",), "file", "name")
    if minor <= 9:
        return Code(*first, 12, b"lnotab", (), ())
    if minor == 10:
        return Code(b"lnotab", *first, 12, b"linetable", (), ())
    return Code(b"lnotab", *first, "qualname", 12, b"lines", b"exc", (), ())


def makers(*codes: Code) -> set[int]:
    return set(bytecode.makers(dill.dumps(codes)))


# `def f(x): return print(x)`, or the part of it that tells, as each version has it.
CALL = {
    9: bytes.fromhex("7400 7c00 8301 5300"),
    10: bytes.fromhex("7400 7c00 8301 5300"),
    11: bytes.fromhex(
        "9700 7401" + "0000" * 5 + "7c00 a601" + "0000" + "ab01" + "0000" * 4 + "5300"
    ),
    12: bytes.fromhex("9700 7401" + "0000" * 4 + "7c00 ab01" + "0000" * 3 + "5300"),
    13: bytes.fromhex("9500 5b01" + "0000" * 4 + "5500 3501" + "0000" * 3 + "2400"),
    14: bytes.fromhex("8000 5c01" + "0000" * 4 + "5600 3401" + "0000" * 3 + "2300"),
}


IDENTITY = bytes.fromhex("9700 7c00 5300")  # `def f(x): return x` of 3.11


@pytest.mark.parametrize("minor", CALL)
def test_each_version_is_known_by_its_own(minor: int) -> None:
    expected = {9: set(range(10))}.get(minor, {minor})
    assert makers(code_of(minor, CALL[minor])) == expected


def test_code_that_two_versions_write_alike_passes_for_both() -> None:
    assert makers(code_of(11, IDENTITY)) == {11, 12}


def test_another_function_of_the_same_pickle_narrows_it_down() -> None:
    assert makers(code_of(11, IDENTITY), code_of(11, CALL[11])) == {11}
    assert makers(code_of(12, IDENTITY), code_of(12, CALL[12])) == {12}


@pytest.mark.parametrize(
    ("start", "minors"),
    [
        ("9501 9700", {11, 12}),  # a closure
        ("8700 9501 9700", {11, 12}),  # with a variable for closures of its own
        ("4b00 0100 9700", {11, 12}),  # a generator
        ("3e01 9500", {13}),
        ("5e00 3e01 9500", {13}),
        ("2300 2000 9500", {13}),
        ("3c01 8000", {14}),
        ("6100 3c01 8000", {14}),
        ("2200 1f00 8000", {14}),
        ("ff00 ff00", set(bytecode.ANY)),  # none of those known
        ("", set(bytecode.ANY)),
    ],
)
def test_closures_and_generators(start: str, minors: set[int]) -> None:
    assert makers(code_of(11, bytes.fromhex(start))) == minors


def plain(x):
    return print(x)


def closure(x):
    def inner(y):
        return x + y

    return [inner(z) for z in range(x)]


def generator(x):
    yield from (y * 2 for y in range(x))


async def coroutine(x):
    async for y in x:
        yield y


def busy(x, *, y=1, **z):
    try:
        with open(x) as file:
            for line in file:
                match line.split():
                    case [first, *rest] if first in z:
                        return {first: rest, **z}, f"{line!r:>10}"
    except ValueError as error:
        raise RuntimeError from error
    finally:
        del y
    return lambda: (x for x in z)


def identity(x):
    return x


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a client's script defines it."""
    space = {"__name__": "__main__"}
    return types.FunctionType(function.__code__, space, function.__name__)


@pytest.mark.parametrize(
    "function", [plain, closure, generator, coroutine, busy, identity]
)
def test_what_this_python_makes_is_its_own(function: Callable[..., Any]) -> None:
    made_by = bytecode.makers(dill.dumps(by_value(function)))
    assert min(OWN, bytecode.NEWEST) in made_by
    assert made_by <= {OWN - 1, OWN, OWN + 1}


def test_much_code_of_this_python_is_its_own() -> None:
    modules = [argparse, codecs, dill._dill, email.message, pytest, typing]
    values = [v for module in modules for v in vars(module).values()]
    values += [
        v for kind in values if isinstance(kind, type) for v in vars(kind).values()
    ]
    codes = [v.__code__ for v in values if isinstance(v, types.FunctionType)]
    assert len(codes) > 300
    for code in codes:
        assert min(OWN, bytecode.NEWEST) in bytecode.makers(dill.dumps(code)), code


def pack(function: Callable[..., Any], *args: Any, code: Any) -> str:
    serializer = ComputeSerializer(strategy_code=code)
    parts = [serializer.serialize(part) for part in (function, args, {})]
    return serializer.pack_buffers(parts)


def other() -> str:
    """A version that cannot run what this one makes."""
    return "3.13.1" if OWN < 13 else "3.11.2"


FOREIGN = "the function was sent as bytecode of Python"


def test_a_function_of_another_python_is_refused_in_words() -> None:
    with pytest.raises(TaskError) as caught:
        bytecode.checked(pack(by_value(plain), 1, code=DillCode()), other())
    assert caught.value.code == "bytecode-mismatch"
    assert caught.value.message.startswith(f"{FOREIGN} 3.{OWN}, which")
    assert "AllCodeStrategies" in caught.value.hint and "`python`" in caught.value.hint


def test_a_function_among_the_arguments_is_refused_too() -> None:
    packed = pack(plain, by_value(plain), code=PureSourceDill())
    with pytest.raises(TaskError, match="an argument holds a function"):
        bytecode.checked(packed, other())


@pytest.mark.parametrize("version", [platform.python_version(), None, "", "4.0", "3.x"])
def test_what_fits_or_cannot_be_judged_passes_unchanged(version: str | None) -> None:
    for strategy in (DillCode(), AllCodeStrategies(), CombinedCode()):
        packed = pack(by_value(plain), by_value(plain), code=strategy)
        assert bytecode.checked(packed, version) is packed


def test_source_passes_unchanged() -> None:
    for strategy in (PureSourceDill(), PureSourceTextInspect()):
        packed = pack(plain, [1.5, "x"], code=strategy)
        assert bytecode.checked(packed, other()) is packed


@pytest.mark.parametrize("strategy", [AllCodeStrategies, CombinedCode])
def test_source_beside_bytecode_is_what_remains(strategy: Any) -> None:
    packed = pack(by_value(plain), 1, code=strategy())
    checked = bytecode.checked(packed, other())
    assert checked != packed
    function, args, kwargs = ComputeSerializer().unpack_and_deserialize(checked)
    assert (function.__name__, args, kwargs) == ("plain", (1,), {})
    with_source = buffers.split(checked)
    assert with_source is not None and buffers.DILL_CODE not in with_source[0]


def test_long_arguments_are_not_looked_into() -> None:
    long = ["x" * bytecode.LARGEST, by_value(plain)]
    packed = pack(plain, long, code=PureSourceDill())
    assert bytecode.checked(packed, other()) is packed


def test_a_function_is_looked_into_however_long() -> None:
    space = {"__name__": "__main__"}
    text = "x" * bytecode.LARGEST
    exec(f"def long(): return print({text!r})", space)
    with pytest.raises(TaskError, match=FOREIGN):
        bytecode.checked(pack(space["long"], code=DillCode()), other())  # type: ignore[arg-type]


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_nothing_runs_that_a_pickle_names() -> None:
    assert makers(code_of(13, CALL[13]), Evil()) == {13}  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "5\nabc", "3\n01\n3\n00\n3\n00\n", "-1\nx"])
def test_what_is_no_task_is_left_to_the_sdk(text: str) -> None:
    assert bytecode.checked(text, "3.13.1") == text


def test_what_is_no_pickle_is_left_to_the_sdk() -> None:
    whole = dill.dumps(code_of(11, CALL[11]))
    for pickled in (b"_create_code", b"\x80\x04_create_code.", whole[:-9]):
        text = binascii.b2a_base64(pickled).decode()
        part = "01\n" + text
        packed = buffers.joined([part, part, part])
        assert bytecode.checked(packed, "3.13.1") == packed
