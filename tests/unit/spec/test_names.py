"""Field names: aliases, ignored, unknown."""

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.names import (
    ALIASES,
    FIELDS,
    IGNORED,
    near,
    resolve,
)


def test_labels_keep_what_the_user_wrote():
    given, notes = resolve({"pip_packages": ["a"], "env": {}})
    assert given["pip"] == ("pip_packages", ["a"])
    assert given["env"] == ("env", {})
    assert notes == ()


@pytest.mark.parametrize("name", [*FIELDS, *ALIASES])
def test_null_is_absent(name):
    assert resolve({name: None}) == ({}, ())


@pytest.mark.parametrize("value", [None, 1, "x", {"deep": [1]}])
@pytest.mark.parametrize("name", IGNORED)
def test_ids_of_the_container_service_are_ignored_with_a_note(name, value):
    given, (note,) = resolve({name: value})
    assert given == {}
    assert note.startswith(f"{name} is ignored")


@pytest.mark.parametrize("alias", [a for a in ALIASES if ALIASES[a] in FIELDS])
def test_a_field_and_its_alias_exclude_each_other(alias):
    name = ALIASES[alias]
    for first, second in [(name, alias), (alias, name)]:
        with pytest.raises(SpecError, match="means the same as") as caught:
            resolve({first: "x", second: "x"})
        assert caught.value.field == second
        assert set(resolve({first: "x", second: None})[0]) == {name}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("pips", "pip"),
        ("Base-Image", "base_image"),
        ("base image", "base_image"),
        ("baseimage", "base_image"),
        ("image", "base_image"),
        ("pip_package", "pip_packages"),
        ("requirements", "pip"),
        ("volumes", "binds"),
        ("pyhton", "python"),
        ("zzz", ""),
        ("pip" * 1000, ""),
    ],
)
def test_the_nearest_name_is_offered(wrong, right):
    assert near(wrong) == right
    with pytest.raises(SpecError) as caught:
        resolve({wrong: 1})
    assert caught.value.nearest == right
    assert "base_image_type" in caught.value.hint
    assert len(caught.value.render()) < 600


def test_odd_names_are_escaped():
    with pytest.raises(SpecError) as caught:
        resolve({"a\x1b[31m\n": 1})
    assert "\x1b" not in caught.value.render()
    assert caught.value.field == r"'a\x1b[31m\n'"
