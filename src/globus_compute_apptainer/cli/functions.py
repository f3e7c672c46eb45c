"""Functions in files, taken by their source alone.

Runs in ``gc-apptainer``. Globus Compute sends a function's source and nothing of the
file around it, so nothing else of that file is run here either: a file that imports
what only the image has can still be used.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from globus_compute_apptainer.errors import SpecError

_HINT = "gc-apptainer try SPEC -- python FILE.py:FUNCTION [ARG ...]"


def from_command(
    command: Sequence[str],
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function and its arguments that ``python FILE.py:FUNCTION ARG…`` means.

    :raises SpecError: it means none
    """
    program, *rest = command
    if Path(program).name not in ("python", "python3") or not rest:
        raise _unusable("only a Python function can be tried", " ".join(command))
    place, *arguments = rest
    file, found, name = place.rpartition(":")
    if not found or not file.endswith(".py") or not name.isidentifier():
        raise _unusable("this does not name a function in a file", place)
    return load(Path(file), name), tuple(map(argument, arguments))


def argument(text: str) -> Any:
    """JSON where it is JSON, the text itself where it is not."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def load(file: Path, name: str) -> Callable[..., Any]:
    """The function ``name`` at the top level of ``file``, by itself.

    As in the container, its definition is run in an empty namespace.

    :raises SpecError: there is none, or it does not stand by itself
    """
    definition = _definition(file, name)
    namespace: dict[str, Any] = {"__name__": file.stem}
    module = ast.Module(body=[definition], type_ignores=[])
    try:
        exec(compile(module, str(file.absolute()), "exec"), namespace)  # noqa: S102
    except Exception as error:  # noqa: BLE001 - defaults and decorators are anybody's
        raise _unusable(
            f"{name} needs more of its file than its own source:"
            f" {type(error).__name__}: {error}",
            f"{file}:{definition.lineno}",
            "only the function's source is sent; move imports into it, and do without"
            " the file's names in decorators, defaults and annotations",
        ) from None
    function: Callable[..., Any] = namespace[name]
    return function


def _definition(file: Path, name: str) -> ast.FunctionDef:
    try:
        module = ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise _unusable(f"{file} cannot be read: {error.strerror}", str(file)) from None
    except (SyntaxError, ValueError) as error:
        raise _unusable(f"{file} is not Python: {error}", str(file)) from None
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if function.name == name:
            return function
    known = ", ".join(function.name for function in functions) or "none"
    raise _unusable(f"there is no function {name} in {file}", name, f"it has: {known}")


def _unusable(message: str, value: str, hint: str = _HINT) -> SpecError:
    return SpecError(message, hint=hint, code="function-unusable", value=value)
