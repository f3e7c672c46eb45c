"""What a build's programs are given: constant definitions, and data that stays data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.system.plan import (
    FLAT_DEFINITION,
    HOST_DEFINITION,
    kit_files,
)
from globus_compute_apptainer.errors import SpecError

GOLDEN = Path(__file__).resolve().parents[3] / "golden/build"
DEFINITIONS = {"flat": FLAT_DEFINITION, "host": HOST_DEFINITION}

values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
names = st.from_regex(r"GC_TEST_[A-Z0-9_]{1,8}", fullmatch=True)
lines = st.lists(
    st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]))
)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_golden_definitions(name: str):
    assert DEFINITIONS[name] == (GOLDEN / f"{name}.def").read_text()


def test_every_golden_definition_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.def")} == set(DEFINITIONS)


def test_golden_kit():
    files = kit_files(
        apt=("git", "tree=2.1.0-1"),
        post=("echo 'it''s'", "touch /done"),
        post_build=True,
        environment={"A": "x y", "B": "it's $(id)"},
    )
    assert files == {
        "apt.txt": "git\ntree=2.1.0-1\n",
        "post.sh": "echo 'it''s'\ntouch /done\n",
        "post-build.txt": "postBuild\n",
        "environment.sh": "export A='x y'\nexport B='it'\"'\"'s $(id)'\n",
    }


def test_files_are_there_only_where_they_are_needed():
    assert kit_files() == {"environment.sh": ""}


@given(st.dictionaries(names, values, max_size=4))
def test_values_arrive_as_they_are_and_no_shell_evaluates_them(variables):
    script = kit_files(environment=variables)["environment.sh"]
    ran = subprocess.run(
        ["/bin/sh", "-euc", script + "\nenv -0"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    shown = dict(row.split("=", 1) for row in ran.stdout.decode().split("\0") if row)
    assert {n: v for n, v in shown.items() if n.startswith("GC_TEST_")} == variables


@given(lines)
def test_post_is_the_users_own_text(post: list[str]):
    given_text = kit_files(post=post).get("post.sh", "")
    assert given_text == "".join(f"{line}\n" for line in post)


def test_post_keeps_its_own_lines():
    files = kit_files(post=("if true\nthen\n\techo\nfi",))
    assert files["post.sh"] == "if true\nthen\n\techo\nfi\n"


@pytest.mark.parametrize(
    "data",
    [{"apt": ("a\n-y",)}, {"apt": ("a\x00",)}, {"apt": ("a\t",)}, {"post": ("a\x00",)}],
)
def test_data_cannot_add_lines(data: dict):
    with pytest.raises(SpecError):
        kit_files(**data)
