"""Any Python object becomes plain JSON of bounded size, or a SpecError."""

import collections
import enum
import json

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.plain import MAX_DEPTH, MAX_SPEC_BYTES, plain


class Hostile:
    """Raises from everything that code can call on an object."""

    def _boom(self, *args):
        raise RuntimeError("code of the object ran")

    __repr__ = __str__ = __eq__ = __hash__ = __len__ = __iter__ = __bool__ = _boom
    __class__ = property(_boom)


class HostileMeta(type):
    @property
    def __name__(cls):
        raise RuntimeError("code of the class ran")


def hostile_class():
    """Not at module level: pytest looks at the names of the classes there."""
    return HostileMeta("Hostile", (), {})


class HostileDict(dict):
    def items(self):
        raise RuntimeError("code of the object ran")

    __iter__ = keys = __len__ = __repr__ = items


class HostileStr(str):
    __slots__ = ()

    def __repr__(self):
        raise RuntimeError("code of the object ran")

    __str__ = __len__ = strip = __eq__ = __hash__ = __repr__


class Word(str, enum.Enum):
    PIP = "pip"


def test_subclasses_become_built_in_types():
    raw = collections.OrderedDict({Word.PIP: (HostileStr("numpy"), Word.PIP)})
    copied = plain(raw)
    assert copied == {"pip": ["numpy", "pip"]}
    assert [type(v) for v in (copied, *copied, *copied["pip"])] == [dict, str, str, str]


def test_the_copy_shares_nothing_with_the_original():
    raw = {"pip": ["a"]}
    copied = plain(raw)
    raw["pip"].append("b")
    assert copied == {"pip": ["a"]}


def test_code_of_a_dict_is_not_run():
    assert plain(HostileDict(pip=["a"])) == {"pip": ["a"]}


@pytest.mark.parametrize(
    "make",
    [list, str, int, bytes, object, Hostile, hostile_class, lambda: hostile_class()()],
)
def test_only_an_object_is_a_spec(make):
    with pytest.raises(SpecError, match="expected an object") as caught:
        plain(make())
    assert caught.value.code == "spec-invalid"


@pytest.mark.parametrize(
    "make",
    [
        *[bytes, set, complex, object, Hostile, hostile_class],
        *[lambda: hostile_class()(), lambda: range(3), lambda: iter(()), lambda: ...],
    ],
)
def test_what_json_cannot_carry_is_named(make):
    with pytest.raises(SpecError, match="JSON cannot carry") as caught:
        plain({"env": {"A": [make()]}})
    assert caught.value.field == "env.A[0]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(SpecError, match="not a number that JSON can carry"):
        plain({"x": value})


def test_huge_integers_are_refused():
    with pytest.raises(SpecError, match="too large"):
        plain({"x": 10**6000})


def test_keys_are_strings():
    with pytest.raises(SpecError, match="has a key that is a number") as caught:
        plain({"env": {1: "a"}})
    assert caught.value.field == "env"


def test_lone_surrogates_are_refused_without_showing_the_text():
    with pytest.raises(SpecError, match="not valid Unicode") as caught:
        plain({"env": {"A": "secret\ud800"}})
    assert "secret" not in caught.value.render()


def test_depth_is_bounded():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SpecError, match="nested too deeply"):
        plain({"x": deep})
    fits = {}
    for _ in range(MAX_DEPTH):
        fits = {"x": fits}
    assert plain(fits) == fits


def test_a_loop_is_refused():
    loop = {}
    loop["x"] = loop
    with pytest.raises(SpecError):
        plain(loop)


def test_shared_structure_cannot_multiply_the_work():
    node = ["x" * 100] * 1000
    for _ in range(MAX_DEPTH - 1):
        node = [node] * 1000
    with pytest.raises(SpecError) as caught:
        plain({"x": node})
    assert caught.value.code == "spec-too-large"


@pytest.mark.parametrize("filler", ["a", "é", '"', "\n"])
def test_the_limit_is_on_the_compact_ascii_json(filler):
    def made(count):
        return {"description": filler * count}

    def size(spec):
        return len(json.dumps(spec, separators=(",", ":")))

    each = size(made(1)) - size(made(0))
    most = (MAX_SPEC_BYTES - size(made(0))) // each
    assert plain(made(most)) == made(most)
    with pytest.raises(SpecError) as caught:
        plain(made(most + 1))
    assert caught.value.code == "spec-too-large"
    assert "administrator" in caught.value.hint


def test_long_keys_do_not_make_long_messages():
    with pytest.raises(SpecError) as caught:
        plain({"k" * 20_000: {"k" * 20_000: b""}})
    assert len(caught.value.render()) < 1000
