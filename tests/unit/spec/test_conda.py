"""The field ``conda``: three forms, one meaning."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.errors import PolicyError, SpecError
from globus_compute_apptainer.spec import policy
from globus_compute_apptainer.spec.conda import Conda, Environment, environment, merged
from globus_compute_apptainer.spec.model import RunSpec, parse

YAML = """\
name: mine
prefix: /home/me/envs/mine
channels:
  - bioconda
  - conda-forge
  - nodefaults
dependencies:
  - python=3.10   # a comment
  - NumPy >=1.22,<2
  - pip
  - pip:
      - Requests==2.31
      - "pandas[test] >= 2"
variables:
  LEVEL: 3
"""


def image(spec: dict) -> object:
    return parse(spec).image_spec(default_base="docker://p:{python}", python="3.11")


def refusal(value: object, **others: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse({"conda": value, **others})
    return caught.value


def test_an_environment_file_as_people_have_it() -> None:
    found = environment("conda", YAML)
    assert found.conda == Conda(
        ("numpy <2,>=1.22", "pip", "python 3.10.*"),
        ("bioconda", "conda-forge"),
        (("LEVEL", "3"),),
    )
    assert found.pip == ("pandas[test]>=2", "requests==2.31")
    assert found.python == "3.10"


def test_the_three_forms_mean_the_same_image() -> None:
    as_list = {"conda": ["numpy=1.26", "scipy"]}
    as_lines = {"conda": "scipy  # first\n\nNumPy=1.26.*\n"}
    as_yaml = {"conda": "dependencies: [scipy, numpy=1.26]"}
    as_json = {"conda": json.dumps({"dependencies": ["scipy", "numpy=1.26"]})}
    as_object = {"conda_packages": {"dependencies": ["numpy=1.26", "scipy"]}}
    made = {image(s) for s in (as_list, as_lines, as_yaml, as_json, as_object)}
    assert len(made) == 1


def test_the_order_of_channels_has_a_meaning() -> None:
    def with_channels(*names: str) -> object:
        return image({"conda": {"channels": list(names), "dependencies": ["x"]}})

    assert with_channels("a", "b") != with_channels("b", "a")
    assert with_channels("a", "b", "a") == with_channels("a", "b")
    assert with_channels("https://conda.anaconda.org/a/") == with_channels("a")


def test_unset_parts_do_not_enter_the_identity() -> None:
    assert Conda(("x",)).canonical() == {"specs": ("x",)}


def test_nested_pip_is_merged_with_the_field_pip() -> None:
    nested = {"dependencies": ["x", {"pip": ["pandas", "attrs"]}]}
    spec = parse({"conda": nested, "pip": ["numpy", "pandas"]})
    assert spec.pip == ("attrs", "numpy", "pandas")


def test_nested_pip_is_validated_as_pip_is() -> None:
    error = refusal({"dependencies": [{"pip": ["ok", "-r other.txt"]}]})
    assert error.field == "conda.dependencies[0].pip[1]"


def test_pip_alone_needs_no_conda() -> None:
    assert parse({"conda": {"dependencies": [{"pip": ["attrs"]}]}}).conda is None
    assert parse({"pip": ["x"], "conda": []}).conda is None


def test_nothing_in_it_is_nothing_asked_for() -> None:
    for nothing in ([], "", {}, "channels: [a]\ndependencies:\n", {"name": "x"}):
        assert refusal(nothing).code == "spec-empty"


def test_python_among_the_packages_is_the_python_wanted() -> None:
    assert parse({"conda": ["python=3.10"]}).python == "3.10"
    assert parse({"conda": ["python>=3.10,<3.11.0a0"]}).python == "3.10"
    assert parse({"conda": ["python>=3.9"]}).python is None
    assert parse({"conda": ["python=3.10.4"], "python": "3.10"}).python == "3.10"
    chosen = image({"conda": ["python==3.12.1"]})
    assert (chosen.base_image, chosen.python) == ("p:3.12", "3.12")


def test_two_pythons_are_one_too_many() -> None:
    assert "'3.11'" in refusal(["python=3.10"], python="3.11").message
    assert "3.10 and 3.11" in refusal(["python=3.10", "python=3.11"]).message
    assert refusal(["python=3.8"]).message.endswith("is too old")


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        (3, "conda", "is a number"),
        ([["x"]], "conda[0]", "is a list"),
        (["ok", "a b c d"], "conda[1]", "more than a version"),
        ("x\n./y.conda", "conda[line 2]", "is a path"),
        ({"dependencies": "x"}, "conda.dependencies", "expected a list"),
        ({"dependencies": [{"npm": ["x"]}]}, "conda.dependencies[0]", "only pip"),
        ({"channels": ["file:///x"]}, "conda.channels[0]", "only https and http"),
        ({"channels": ["/data/ch"]}, "conda.channels[0]", "is a path"),
        ({"channels": ["https://a:b@h/c"]}, "conda.channels[0]", "credentials"),
        ({"channels": ["https://h/t/tok/c"]}, "conda.channels[0]", "credentials"),
        ({"channels": ["x"] * 21}, "conda.channels", "the limit is 20"),
        ({"platforms": ["linux-64"]}, "conda", "no environment.yml has"),
        ({"variables": {"HOME": "/x"}}, "conda.variables", "HOME"),
        ("dependencies: [&a x, *a]", "conda", "anchor or alias"),
        ("dependencies: [!!python/name:os.system x]", "conda", "YAML tag"),
        ("dependencies: [x]\ndependencies: [y]", "conda", "twice (line 2)"),
        ("dependencies: [x\n", "conda", "is not YAML"),
        ("dependencies: [x]\n---\ndependencies: [y]", "conda", "several YAML"),
        ("dependencies: " + "[" * 3000, "conda", "nested too deeply"),
        ("@EXPLICIT\nhttps://h/x.conda", "conda", "explicit list"),
        ("{'dependencies': {? [a] : b}}", "conda", "not a text"),
    ],
)
def test_refusals_name_the_place(value: object, field: str, words: str) -> None:
    error = refusal(value)
    assert error.field == field
    assert words in f"{error.message} {error.hint}"


def test_errors_never_show_credentials() -> None:
    error = refusal({"channels": ["https://me:s3cret@h/c"], "dependencies": ["x"]})
    assert "s3cret" not in error.render()


def test_scalars_of_yaml_are_texts() -> None:
    found = environment("conda", "variables: {A: no, B: 3.10, C: 2024-01-01}")
    assert found.conda is not None
    assert found.conda.variables == (("A", "no"), ("B", "3.10"), ("C", "2024-01-01"))


def test_an_aliased_bomb_costs_nothing() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{two}: &{two} [" + ",".join([f"*{one}"] * 9) + "]\n"
    assert "anchor" in refusal(bomb + "dependencies: *i").message


def test_policy_sees_every_channel_that_is_named() -> None:
    rules = policy.Policy(conda_channels=("conda-forge", "https://mirror.org/*"))

    def check(conda: object) -> None:
        policy.check(image({"conda": conda}), RunSpec(), rules, default_base=True)

    check(["numpy"])
    check({"channels": ["conda-forge", "https://mirror.org/c"], "dependencies": ["x"]})
    check(["https://conda.anaconda.org/conda-forge::x"])
    for conda in (
        {"channels": ["conda-forge", "bioconda"], "dependencies": ["x"]},
        ["bioconda::x"],
        ["bioconda/noarch::x"],
        ["x[channel=bioconda]"],
    ):
        with pytest.raises(PolicyError) as caught:
            check(conda)
        assert caught.value.hint == (
            "allowed conda channels: conda-forge, https://mirror.org/*"
        )


def test_two_environments_become_one() -> None:
    first = environment("a", "channels: [x]\ndependencies: [numpy, {pip: [q]}]")
    second = environment("b", "channels: [y, x]\ndependencies: [python=3.10]")
    both = merged(first, second)
    assert both.conda == Conda(("numpy", "python 3.10.*"), ("x", "y"))
    assert (both.pip, both.python) == (("q",), "3.10")
    assert merged(Environment(), second) == second
    with pytest.raises(SpecError):
        merged(second, environment("c", ["python=3.12"]))


@given(st.text(max_size=200))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    try:
        found = environment("conda", text)
    except SpecError:
        return
    if found.conda:
        assert (
            environment("conda", list(found.conda.specs)).conda
            == Conda(found.conda.specs)
            or not found.conda.specs
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["channels", "dependencies", "pip", "variables", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_value_is_accepted_or_refused(value: object) -> None:
    try:
        parse({"conda": value, "pip": ["x"]})
    except SpecError as error:
        assert error.message
