"""JSON, tables and sizes."""

from __future__ import annotations

import io
import json

import pytest

from globus_compute_apptainer.cli import output
from globus_compute_apptainer.errors import BuildError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (118_400_000, "118 MB"),
        (999_999_999, "1 GB"),
        (2_500_000_000_000, "2.5 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_short_digest() -> None:
    assert output.short("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"


def test_a_table_in_a_log_is_not_cut_and_not_markup() -> None:
    stream = io.StringIO()
    output.table(
        ("name", "size"),
        [("[red]x", "1"), ("y" * 120, "22")],
        right=("size",),
        stream=stream,
    )
    lines = stream.getvalue().splitlines()
    assert any("[red]x" in line for line in lines)
    assert any("y" * 120 in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in stream.getvalue()


def test_an_error_for_people_and_for_programs(capsys) -> None:
    error = BuildError("no", hint="try", stage="pip", tail=("a", "b"))
    output.error(error, as_json=False)
    assert capsys.readouterr().err == f"gc-apptainer: {error.render()}\n"
    output.error(error, as_json=True)
    fields = json.loads(capsys.readouterr().err)["error"]
    assert fields["code"] == "build-failed"
    assert fields["stage"] == "pip"
    assert fields["tail"] == ["a", "b"]
