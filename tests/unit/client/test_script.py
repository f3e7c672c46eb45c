"""Scripts with a ``# /// script`` block."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.client import from_script, pythons
from globus_compute_apptainer.client.script import has_block
from globus_compute_apptainer.errors import SpecError


def block(text: str) -> str:
    lines = [f"# {line}".rstrip() for line in textwrap.dedent(text).splitlines()]
    return "\n".join(
        ["#!/usr/bin/env python", "# /// script", "#", *lines, "# ///", ""]
    )


def refused(text: str, **options) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_script(text, **options)
    return caught.value


def test_the_block_becomes_a_spec(write) -> None:
    text = block(
        """\
        requires-python = ">=3.12,<3.13"
        dependencies = [
            "requests<3",
            "rich",
        ]
        """
    )
    spec = {"python": "3.12", "pip": ["requests<3", "rich"]}
    assert from_script(text + "\nimport there_is_none\n") == spec
    assert from_script(write("work.py", text)) == spec
    assert from_script(str(write("work.py", text.replace("\n", "\r\n")))) == spec


def test_without_requires_python_it_is_this_one() -> None:
    spec = from_script(block('dependencies = ["six"]'))
    assert spec == {"python": pythons.running(), "pip": ["six"]}
    assert from_script(block("")) == {"python": pythons.running()}


def test_the_python_that_is_asked_for_must_be_allowed() -> None:
    text = block('requires-python = ">=3.11"')
    assert from_script(text, python="3.13") == {"python": "3.13"}
    error = refused(text, python="3.9")
    assert error.code == "python-mismatch"
    assert "3.9" in error.message


def test_groundhog_s_tables_and_those_of_other_tools_are_theirs() -> None:
    text = block(
        """\
        requires-python = ">=3.12"
        dependencies = ["numpy"]
        [tool.hog.anvil]
        endpoint = "5aafb4c1-27b2-40d8-a038-a0277611868f"
        worker_init = "module load x"
        [tool.ruff]
        line-length = 88
        """
    )
    assert from_script(text, python="3.12") == {"python": "3.12", "pip": ["numpy"]}


def test_what_uv_alone_could_do_is_named_all_at_once() -> None:
    text = block(
        """\
        dependencies = ["mine", "torch", "six"]
        [tool.uv]
        exclude-newer = "2026-01-01T00:00:00Z"
        index-url = "https://somewhere/simple"
        cache-dir = "/tmp/cache"
        constraint-dependencies = ["numpy<2"]
        [tool.uv.sources]
        mine = { git = "https://h/r.git" }
        torch = { index = "cu" }
        unused = { path = "." }
        """
    )
    error = refused(text)
    assert error.code == "source-unsupported"
    for part in (
        "tool.uv.exclude-newer",
        "tool.uv.index-url",
        "tool.uv.constraint-dependencies: numpy<2",
        "tool.uv.sources.mine (git)",
        "tool.uv.sources.torch (index)",
    ):
        assert part in error.message
    for part in ("cache-dir", "unused", "six"):
        assert part not in error.message
    assert "ignore=" in error.hint


def test_a_setting_can_be_done_without() -> None:
    text = block('dependencies = ["six"]\n[tool.uv]\nexclude-newer = "2026-01-01"')
    spec = from_script(text, ignore=["tool.uv.exclude-newer"])
    assert spec["pip"] == ["six"]


def test_archives_on_the_web_and_constraints_are_kept() -> None:
    text = block(
        """\
        dependencies = ["Mine[x]>=1 ; sys_platform == 'linux'", "six"]
        [tool.uv]
        constraint-dependencies = ["six<2"]
        [tool.uv.sources]
        mine = { url = "https://h/mine-1.0.zip" }
        """
    )
    assert from_script(text)["pip"] == [
        "mine[x] @ https://h/mine-1.0.zip ; sys_platform == 'linux'",
        "six",
        "six<2",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os\n", "no `# /// script` block"),
        (block("") + block(""), "more than one"),
        (block("dependencies = ["), "not TOML"),
        (block("dependencies = [7]"), "list of texts"),
        (block("dependencies = 'six'"), "list of texts"),
        (block("requires-python = 3.11"), "not a text"),
        (block("requires-python = 'new'"), "requires-python"),
        (block("requires-python = '<3'"), "no version of Python"),
        (block("more = 1"), "more"),
        (block("dependencies = ['six', 'a b']"), "PEP 508"),
        (block("[tool]\nuv = 3"), "not a table"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    assert says in refused(text).message


def test_a_file_that_is_not_there(tmp_path) -> None:
    error = refused(str(tmp_path / "no.py"))
    assert error.code == "source-unreadable"
    (tmp_path / "no.py").write_bytes(b"\xff\n")
    assert "UTF-8" in refused(str(tmp_path / "no.py")).message


@given(st.text("#/ script\n=[]\"'a", max_size=80))
def test_any_text_is_a_spec_or_refused(text: str) -> None:
    try:
        assert from_script(f"#\n{text}")
        assert has_block(f"#\n{text}")
    except SpecError:
        pass
