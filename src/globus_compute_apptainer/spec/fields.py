"""Validators of the remaining fields: python, post, env, gpu, preload, for people.

Pure. Each takes the field's name as the user wrote it and its plain JSON value, and
returns the normal form or raises :class:`~..errors.SpecError`.
"""

from __future__ import annotations

import re
from keyword import iskeyword
from typing import Literal

from globus_compute_apptainer.spec.items import bounded
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind, text

Gpu = Literal["nvidia", "rocm"]

#: Oldest Python, as ``3.N``, in which the agent inside the container runs.
OLDEST_MINOR = 9

MAX_LINE = 8192  # characters of one line of `post`
MAX_TEXT = 4096  # characters of name, description, or one label
MAX_ENTRIES = 200  # variables or labels
MAX_MODULES, MAX_MODULE = 50, 200  # to preload; characters of a name

_MINOR = re.compile(r"3\.(0|[1-9][0-9]?)")
_PATCH = re.compile(r"(3\.[0-9]{1,2})\.[0-9A-Za-z.+]{1,20}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_RESERVED = ("APPTAINER", "SINGULARITY", "GC_TASK_", "PARSL_")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_GPU_MAKERS = {"cuda": "nvidia", "nv": "nvidia", "amd": "rocm", "hip": "rocm"}


def python(field: str, value: Json) -> str:
    """A minor version of Python, ``3.N``."""
    quote = 'write it in quotes: "3.11" (as a number, 3.10 would be 3.1)'
    with blame(field, value):
        wanted = text(value, "" if isinstance(value, list) else quote)
        minor = _MINOR.fullmatch(wanted)
        if minor is None:
            patch = _PATCH.fullmatch(wanted)
            hint = f'write "{patch[1]}"' if patch else 'as in "3.11"'
            raise Refusal("is not a minor version of Python", hint)
        if int(minor[1]) < OLDEST_MINOR:
            raise Refusal("is too old", f"tasks need Python 3.{OLDEST_MINOR} or newer")
    return wanted


def gpu(field: str, value: Json) -> Gpu:
    """The maker whose driver libraries are bound into the container."""
    hint = 'one of "nvidia", "rocm"'
    with blame(field, value):
        maker = text(value, hint)
        if maker == "nvidia":
            return "nvidia"
        if maker == "rocm":
            return "rocm"
        nearest = _GPU_MAKERS.get(maker.lower(), "")
        raise Refusal("is not known", hint, nearest=nearest)


def preload(field: str, value: Json) -> tuple[str, ...]:
    """Names of modules, in the order in which they are imported, each once."""
    if not isinstance(value, list):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list", '["numpy", "a.module"]')
    bounded(field, len(value), MAX_MODULES)
    found: dict[str, None] = {}
    for number, entry in enumerate(value):
        with blame(f"{field}[{number}]", entry):
            found[module(text(entry))] = None
    return tuple(found)


def module(name: str) -> str:
    """The name of a module, such as ``numpy`` or ``scipy.linalg``.

    :raises Refusal: Python could not import anything of that name
    """
    parts = name.split(".")
    if len(name) > MAX_MODULE or not all(
        part.isidentifier() and not iskeyword(part) for part in parts
    ):
        raise Refusal("is not the name of a module", 'as in "numpy" or "scipy.linalg"')
    return name


def post(field: str, value: Json) -> tuple[str, ...]:
    """The lines of a shell script, in order, blanks inside them kept.

    A text is split into lines, and so is a list entry with several; empty lines at
    both ends are dropped. The lines are code by design: policy decides whether they
    run at all. Tabs are the only control characters accepted.
    """
    lines: list[str] = []
    for label, entry in _scripts(field, value):
        for line in entry.split("\n"):
            _check_line(label, line)
            lines.append(line)
    bounded(field, len(lines))
    filled = [number for number, line in enumerate(lines) if line.strip()]
    return tuple(lines[filled[0] : filled[-1] + 1]) if filled else ()


def _scripts(field: str, value: Json) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(field, value)]
    if not isinstance(value, list):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list of shell lines")
    scripts = []
    for number, entry in enumerate(value):
        label = f"{field}[{number}]"
        if not isinstance(entry, str):
            with blame(label, entry):
                raise Refusal(f"is {kind(entry)}; expected a string")
        scripts.append((label, entry))
    return scripts


def _check_line(label: str, line: str) -> None:
    with blame(label, line):
        if len(line) > MAX_LINE:
            raise Refusal(f"has a line longer than {MAX_LINE} characters")
        if _CONTROL.search(line):
            hint = "lines end in LF alone" if "\r" in line else ""
            raise Refusal("has a control character", hint)


def env(field: str, value: Json) -> tuple[tuple[str, str], ...]:
    """Variables of the running task, sorted by name. Errors never show a value.

    Any name is the user's to set, ``PATH`` and ``LD_LIBRARY_PATH`` too, except those
    by which Apptainer, Parsl and the endpoint steer the container itself.
    """
    if not isinstance(value, dict):
        with blame(field):
            raise Refusal(f"is {kind(value)}; expected an object", '{"NAME": "value"}')
    bounded(field, len(value), MAX_ENTRIES)
    pairs = []
    for name, content in value.items():
        with blame(field, name):
            _check_variable(name)
        with blame(f"{field}.{name}"):
            if not isinstance(content, str):
                hint = "write it in quotes" if isinstance(content, (int, float)) else ""
                raise Refusal(f"is {kind(content)}; expected a string", hint)
            if "\0" in content:
                raise Refusal("has a NUL character")
        pairs.append((name, content))
    return tuple(sorted(pairs))


def _check_variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        hint = "letters, digits and _, not beginning with a digit"
        raise Refusal("has a name that no variable can have", hint)
    if name.startswith(_RESERVED):
        hint = "reserved: names that begin with " + ", ".join(_RESERVED)
        raise Refusal("has a reserved name", hint)
    if name == "HOME":
        raise Refusal("has HOME, which Apptainer does not let anyone set")


def note(field: str, value: Json, *, lines: bool = False) -> str:
    """A text for people; it may be empty. ``lines``: may have several lines."""
    with blame(field, value):
        if not isinstance(value, str):
            raise Refusal(f"is {kind(value)}; expected a string")
        if len(value) > MAX_TEXT:
            raise Refusal(f"is longer than {MAX_TEXT} characters")
        if _CONTROL.search(value.replace("\n", " ") if lines else value):
            raise Refusal("has a control character")
    return value.strip()


def labels(field: str, value: Json) -> tuple[tuple[str, str], ...]:
    """Names and texts for people, sorted by name."""
    if not isinstance(value, dict):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected an object", '{"project": "x"}')
    bounded(field, len(value), MAX_ENTRIES)
    pairs = []
    for name, content in value.items():
        with blame(field, name):
            text(name)
        pairs.append((note(field, name), note(f"{field}.{name[:64]}", content)))
    return tuple(sorted(pairs))
