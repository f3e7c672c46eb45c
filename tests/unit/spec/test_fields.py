"""python, gpu, post, env and the fields for people."""

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import fields
from globus_compute_apptainer.spec.items import MAX_ITEMS


def refused(check, value, **how):
    with pytest.raises(SpecError) as caught:
        check("f", value, **how)
    return caught.value


@pytest.mark.parametrize("value", ["3.9", "3.10", "3.11", " 3.14 ", "3.20"])
def test_python_minor_versions(value):
    assert fields.python("python", value) == value.strip()


@pytest.mark.parametrize("value", [3.11, 3.1, 3, True])
def test_python_as_a_number_is_told_to_be_quoted(value):
    assert '"3.11"' in refused(fields.python, value).hint


def test_python_patch_versions_are_told_the_minor():
    assert refused(fields.python, "3.11.4").hint == 'write "3.11"'


@pytest.mark.parametrize(
    "value",
    [
        "",
        "3",
        "3.",
        "3.011",
        "2.7",
        "3.7",
        "4.0",
        "python3.11",
        ">=3.11",
        "3.11\n3",
        "\u0663.\u0661\u0661",
    ],
)
def test_python_refused(value):
    assert refused(fields.python, value).field == "f"


def test_modules_to_preload_keep_their_order():
    given = ["numpy", "scipy.linalg", "numpy", "_x"]
    assert fields.preload("preload", given) == ("numpy", "scipy.linalg", "_x")
    assert fields.preload("preload", []) == ()


@pytest.mark.parametrize(
    "value",
    [
        "numpy",
        {"numpy": 1},
        ["a b"],
        ["a."],
        [".a"],
        ["a;b"],
        ["class"],
        [1],
        ["x" * 201],
    ],
)
def test_what_is_no_module(value):
    assert refused(fields.preload, value).field.startswith("f")


def test_too_many_modules():
    names = [f"m{n}" for n in range(51)]
    assert refused(fields.preload, names).field == "f"


def test_gpu():
    assert fields.gpu("gpu", "nvidia") == "nvidia"
    assert fields.gpu("gpu", "rocm") == "rocm"
    assert refused(fields.gpu, "CUDA").nearest == "nvidia"
    assert refused(fields.gpu, "amd").nearest == "rocm"
    for value in (True, 1, [], "", "NVIDIA"):
        assert "nvidia" in refused(fields.gpu, value).hint


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("echo a", ("echo a",)),
        ("\necho a\n\n  echo b \n\n", ("echo a", "", "  echo b ")),
        (["echo a", "", "b\nc"], ("echo a", "", "b", "c")),
        (["\techo 'é' \"$x\""], ("\techo 'é' \"$x\"",)),
        ("", ()),
        ([" ", ""], ()),
    ],
)
def test_post_keeps_order_and_inner_blanks(value, lines):
    assert fields.post("post", value) == lines


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (3, "f"),
        ({"a": 1}, "f"),
        (["a", None], "f[1]"),
        (["a", 1], "f[1]"),
        ("a\r\nb", "f"),
        (["a", "b\x00"], "f[1]"),
        ("\x1b[31m", "f"),
        ("x" * (fields.MAX_LINE + 1), "f"),
        ("x\n" * (MAX_ITEMS + 1), "f"),
    ],
)
def test_post_refused(value, field):
    assert refused(fields.post, value).field == field


def test_env_is_sorted_and_exact():
    value = {"PATH": "/x:$PATH", "_A1": " a\n'\"\t,é ", "LD_LIBRARY_PATH": ""}
    assert fields.env("env", value) == tuple(sorted(value.items()))


@pytest.mark.parametrize(
    "name",
    [
        *["", "1A", "A-B", "A B", "A=B", "A\n", "É", "HOME", "A" * 500],
        *["APPTAINER_BIND", "APPTAINERENV_X", "SINGULARITY_X"],
        *["GC_TASK_UUID", "PARSL_WORKER_RANK"],
    ],
)
def test_env_names_refused(name):
    error = refused(fields.env, {name: "secret"})
    assert error.field == "f"
    assert "secret" not in error.render()


@pytest.mark.parametrize("content", [271828, 2.71828, None, ["secret"], "secret\0"])
def test_env_values_are_strings_and_never_shown(content):
    error = refused(fields.env, {"A": content})
    assert error.field == "f.A"
    assert "secret" not in error.render()
    assert "71828" not in error.render()


def test_env_hints():
    assert "quotes" in refused(fields.env, {"A": True}).hint
    assert '"NAME"' in refused(fields.env, ["A=b"]).hint
    many = {f"A{n}": "" for n in range(fields.MAX_ENTRIES + 1)}
    assert "limit" in refused(fields.env, many).message


def test_notes_are_for_people():
    assert fields.note("name", " é 1 ") == "é 1"
    assert fields.note("name", "") == ""
    assert fields.note("description", "a\nb\n", lines=True) == "a\nb"
    assert refused(fields.note, "a\nb").field == "f"
    assert refused(fields.note, "\x1b", lines=True).field == "f"
    assert refused(fields.note, "x" * (fields.MAX_TEXT + 1)).field == "f"
    assert "expected a string" in refused(fields.note, 3).message


def test_labels_are_sorted_pairs():
    assert fields.labels("labels", {"b": "2", "a": " 1"}) == (("a", "1"), ("b", "2"))
    assert fields.labels("labels", {}) == ()
    for value in (["a"], {"a": 1}, {"": "x"}, {"a": "\n"}, {"a\n": "x"}, "a"):
        assert refused(fields.labels, value).field.startswith("f")
