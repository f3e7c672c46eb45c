"""Conda packages, as the field ``conda`` names them. Pure.

Three forms: a list of match specs, a text (the contents of an ``environment.yml``, or
match specs line by line), or an ``environment.yml`` as an object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from globus_compute_apptainer.spec import fields
from globus_compute_apptainer.spec.document import tree
from globus_compute_apptainer.spec.items import (
    bounded,
    checked,
    requirement_lines,
)
from globus_compute_apptainer.spec.matchspec import (
    channel,
    channel_of,
    match_spec,
    minor_version,
    name_of,
)
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind, text
from globus_compute_apptainer.spec.requirements import requirement

MAX_CHANNELS = 20

#: Of an environment.yml: what counts, and what is for the person's own machine.
_KEYS = ("channels", "dependencies", "variables")
_IGNORED = ("name", "prefix")

_YAML = re.compile(
    r"^(?:\s*\{|(?:---|channels|dependencies|variables|name|prefix)\s*(?::|$))",
    re.MULTILINE,
)
_EXPLICIT = re.compile(r"^\s*@EXPLICIT", re.MULTILINE)


@dataclass(frozen=True)
class Conda:
    """Conda packages in normal form.

    :param specs: match specs, sorted
    :param channels: names or URLs, first one first; empty: the endpoint's own
    :param variables: ``(name, value)`` that the environment sets, sorted by name
    """

    specs: tuple[str, ...]
    channels: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def canonical(self) -> dict[str, Any]:
        """What enters an image's identity; unset parts left out."""
        given = {
            "specs": self.specs,
            "channels": self.channels,
            "variables": self.variables,
        }
        return {name: value for name, value in given.items() if value}

    def joined(self, other: Conda) -> Conda:
        """Both together; this one's channels come first, and its variables win."""
        return Conda(
            tuple(sorted({*self.specs, *other.specs})),
            tuple(dict.fromkeys((*self.channels, *other.channels))),
            tuple(sorted({**dict(other.variables), **dict(self.variables)}.items())),
        )

    @property
    def named_channels(self) -> tuple[str, ...]:
        """Every channel that the user names: the list's, then those of match specs."""
        of_specs = filter(None, map(channel_of, self.specs))
        return tuple(dict.fromkeys((*self.channels, *of_specs)))


@dataclass(frozen=True)
class Environment:
    """All that the field asks for.

    :param conda: None where no conda package is wanted
    :param pip: requirements in normal form, sorted
    :param python: the minor version to which the match specs pin Python; or None
    """

    conda: Conda | None = None
    pip: tuple[str, ...] = ()
    python: str | None = None


def environment(field: str, value: Json) -> Environment:
    """What the field ``conda`` asks for.

    :raises SpecError: naming the entry
    """
    if isinstance(value, str):
        with blame(field, value):
            if _EXPLICIT.search(value):
                hint = "write name=version=build, one per line"
                raise Refusal("is an explicit list of URLs", hint)
            if _YAML.search(value):
                value = tree(value)
                if not isinstance(value, dict):
                    raise Refusal(f"holds {kind(value)}; expected an environment.yml")
    if isinstance(value, dict):
        return _from_object(field, value)
    return _made(field, checked(field, value, requirement_lines, match_spec))


def merged(first: Environment, second: Environment) -> Environment:
    """Both together, as where a spec and a payload each bring an environment.

    Channels of ``first`` come first, and its variables win.

    :raises SpecError: they pin Python to different versions
    """
    if first.conda is None or second.conda is None:
        conda = first.conda or second.conda
    else:
        conda = first.conda.joined(second.conda)
    pip = tuple(sorted({*first.pip, *second.pip}))
    python = _pinned("conda", conda.specs) if conda else None
    return Environment(conda, pip, python)


def wanted_python(
    python: str | None, environment: Environment, field: str
) -> str | None:
    """The Python of the field ``python`` and of the match specs, which must agree.

    :raises SpecError: they do not
    """
    if python and environment.python and python != environment.python:
        reason = f"pins Python {environment.python}, but python is {python!r}"
        raise Refusal(reason, "leave one of them out").at(field, "")
    return environment.python or python


def _from_object(field: str, value: dict[str, Json]) -> Environment:
    for name in value:
        if name not in (*_KEYS, *_IGNORED):
            hint = "the keys are " + ", ".join((*_KEYS, *_IGNORED))
            raise Refusal("has a key that no environment.yml has", hint).at(
                field, repr(name[:40])
            )
    given = {name: part for name, part in value.items() if part not in (None, "")}
    specs, pip = _dependencies(f"{field}.dependencies", given.get("dependencies", []))
    channels = _channels(f"{field}.channels", given.get("channels", []))
    variables = fields.env(f"{field}.variables", given.get("variables", {}))
    return _made(field, specs, channels, variables, pip)


def _made(
    field: str,
    specs: tuple[str, ...],
    channels: tuple[str, ...] = (),
    variables: tuple[tuple[str, str], ...] = (),
    pip: tuple[str, ...] = (),
) -> Environment:
    conda = Conda(specs, channels, variables) if specs or variables else None
    return Environment(conda, pip, _pinned(field, specs))


def _pinned(field: str, specs: tuple[str, ...]) -> str | None:
    """The minor version of Python that the match specs leave; None: any."""
    minors = {minor_version(spec) for spec in specs if name_of(spec) == "python"} - {""}
    if len(minors) > 1:
        raise Refusal(f"pins Python to {' and '.join(sorted(minors))}").at(field, "")
    return fields.python(field, minors.pop()) if minors else None


def _dependencies(field: str, value: Json) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Match specs and pip requirements of ``dependencies``."""
    if not isinstance(value, list):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list")
    bounded(field, len(value))
    specs: set[str] = set()
    pip: set[str] = set()
    for number, entry in enumerate(value):
        label = f"{field}[{number}]"
        if isinstance(entry, dict):
            pip.update(_nested_pip(label, entry))
            continue
        with blame(label, entry):
            specs.add(match_spec(text(entry)))
    bounded(field, len(specs) + len(pip))
    return tuple(sorted(specs)), tuple(sorted(pip))


def _nested_pip(label: str, entry: dict[str, Json]) -> tuple[str, ...]:
    if list(entry) != ["pip"]:
        with blame(label, entry):
            raise Refusal("is an object; only pip may be one", '{"pip": ["…"]}')
    listed = entry["pip"]
    if listed in (None, ""):
        return ()
    return checked(f"{label}.pip", listed, requirement_lines, requirement)


def _channels(field: str, value: Json) -> tuple[str, ...]:
    """Channels in order, without ``nodefaults``, which is so here anyway."""
    if not isinstance(value, list):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list of channels")
    bounded(field, len(value), MAX_CHANNELS)
    found = []
    for number, entry in enumerate(value):
        with blame(f"{field}[{number}]", entry):
            found.append(channel(text(entry)))
    return tuple(name for name in dict.fromkeys(found) if name != "nodefaults")
