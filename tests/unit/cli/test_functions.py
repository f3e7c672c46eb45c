"""Functions are taken out of files by their source, and nothing else runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect

from globus_compute_apptainer.cli import functions
from globus_compute_apptainer.errors import SpecError

FILE = """\
import not_installed_here

raise SystemExit("the file must not be run")

def double(x, by=2):
    # its own comment
    return x * by

@not_installed_here.decorated
def decorated():
    pass

def default(x=not_installed_here.y):
    pass

async def later():
    pass

class Thing:
    def method(self):
        pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "work.py"
    path.write_text(FILE)
    return path


def test_a_function_comes_with_its_source_alone(file: Path) -> None:
    function = functions.load(file, "double")
    assert function(4) == 8
    serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    sent = serializer.serialize(function)
    assert "# its own comment" in sent
    assert "SystemExit" not in sent
    assert serializer.deserialize(sent)(4) == 8


@pytest.mark.parametrize("name", ["decorated", "default"])
def test_a_function_that_needs_its_file(file: Path, name: str) -> None:
    with pytest.raises(SpecError, match="NameError") as caught:
        functions.load(file, name)
    assert "imports into it" in caught.value.hint


@pytest.mark.parametrize("name", ["missing", "later", "Thing", "method"])
def test_what_is_not_a_function_at_the_top(file: Path, name: str) -> None:
    with pytest.raises(SpecError, match=f"no function {name}") as caught:
        functions.load(file, name)
    assert "double, decorated, default" in caught.value.hint


@pytest.mark.parametrize("content", ["def f(:", "\0"])
def test_a_file_that_is_not_python(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(SpecError, match="is not Python"):
        functions.load(tmp_path / "bad.py", "f")
    with pytest.raises(SpecError, match="cannot be read"):
        functions.load(tmp_path / "none.py", "f")


def test_arguments_are_json_where_they_are_json(file: Path) -> None:
    command = ["python", f"{file}:double", "3", '{"a": [1]}', "null", "text", "1.5x"]
    function, arguments = functions.from_command(command)
    assert function.__name__ == "double"
    assert arguments == (3, {"a": [1]}, None, "text", "1.5x")


@pytest.mark.parametrize(
    "command",
    [
        ["python"],
        ["sh", "-c", "true"],
        ["python", "-c", "pass"],
        ["python", "work.py"],
        ["python", "work.py:"],
        ["python", "work:double"],
        ["python", "work.py:not-a-name"],
    ],
)
def test_commands_that_name_no_function(command: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        functions.from_command(command)
    assert caught.value.code == "function-unusable"
    assert "FILE.py:FUNCTION" in caught.value.hint
