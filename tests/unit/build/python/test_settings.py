"""Variables and file say the same to uv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.python import settings, uv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

places = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30
)


@given(places, st.lists(places, max_size=3))
def test_whatever_a_place_is_it_arrives_as_it_is(default, extra) -> None:
    given = {"UV_DEFAULT_INDEX": default, "UV_INDEX": " ".join(extra), "X": "y"}
    left, text = settings.replaced(given)
    assert left == {"X": "y"}
    tables = tomllib.loads(text)["index"]
    said = [f"{t['name']}={t['url']}" if "name" in t else t["url"] for t in tables]
    assert said == [*extra, default]
    assert [t.get("default", False) for t in tables] == [False] * len(extra) + [True]


def test_a_site_with_a_file_of_its_own_keeps_it() -> None:
    given = {"UV_DEFAULT_INDEX": "https://a/simple", "UV_CONFIG_FILE": "/etc/uv.toml"}
    assert settings.replaced(given) == (given, "")


def test_the_public_index_is_named_where_no_other_is_the_default() -> None:
    given = {"UV_INDEX": "https://a/simple"}
    _, text = settings.replaced(given, "https://public/simple")
    first, second = tomllib.loads(text)["index"]
    assert (first["url"], second["url"]) == (
        "https://a/simple",
        "https://public/simple",
    )
    assert second["default"] is True
    own = {"UV_DEFAULT_INDEX": "https://own/simple"}
    assert "public" not in settings.replaced(own, "https://public/simple")[1]


def test_where_no_index_is_named_nothing_is_said() -> None:
    assert settings.replaced({"UV_FIND_LINKS": "/x"}) == ({"UV_FIND_LINKS": "/x"}, "")


def test_the_real_uv_takes_it(tmp_path: Path) -> None:
    """And reads the index named there, not another one."""
    program = uv.find()
    if program is None:
        pytest.fail("uv is not installed")
    given = {
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_INDEX": "b=http://127.0.0.1:9/b",
        "UV_NO_CONFIG": "1",
    }
    left, text = settings.replaced(given)
    (tmp_path / "uv.toml").write_text(text)
    argv = [
        str(program),
        "pip",
        "compile",
        "-",
        "--no-cache",
        "--python",
        sys.executable,
    ]
    done = subprocess.run(
        argv,
        input="humanize",
        capture_output=True,
        text=True,
        env={
            **left,
            "PATH": os.environ["PATH"],
            "UV_CONFIG_FILE": str(tmp_path / "uv.toml"),
            "UV_HTTP_RETRIES": "0",
        },
        timeout=120,
    )
    assert done.returncode != 0
    assert "127.0.0.1:9/b/humanize" in done.stderr
