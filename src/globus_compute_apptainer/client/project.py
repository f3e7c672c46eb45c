"""Containers from the ``[project]`` table of a pyproject.toml.

Runs where the SDK runs. The project's own code is not sent: functions that import it
need it in the image, as a released package or through ``payload_url``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from globus_compute_apptainer.client import pythons, uv_settings
from globus_compute_apptainer.client.outcome import (
    checked,
    refuse,
    table,
    text_of,
    texts,
    toml,
    unreadable,
)


def from_pyproject(
    path: str | Path,
    *,
    python: str | None = None,
    extras: Collection[str] = (),
    groups: Collection[str] = (),
    ignore: Collection[str] = (),
) -> dict[str, Any]:
    """The spec for the dependencies of a project, not for the project itself.

    :param python: minor version to ask for, where the project lets it
    :param extras: of ``[project.optional-dependencies]``, to be added
    :param groups: of ``[dependency-groups]``, to be added
    :param ignore: settings to do without, as ``tool.uv.override-dependencies``
    :raises SpecError: there is no ``[project]``, or what it says cannot be carried
    """
    where = str(path)
    document = toml(text_of(Path(path)), where)
    project = table(document, "project", where=where)
    if not project:
        raise unreadable(where, "it has no [project] table", _other_tool(document))
    if "dependencies" in texts(project, "dynamic", where):
        raise unreadable(
            where,
            "its dependencies are dynamic: only building the project tells them",
            "write them into [project], or give a requirements.txt",
        )
    optional = table(project, "optional-dependencies", where=where)
    wanted = texts(project, "dependencies", where)
    for extra in extras:
        wanted += texts(optional, _known(extra, optional, where), where)
    every = table(document, "dependency-groups", where=where)
    for group in groups:
        wanted += _group(every, group, where, ())
    wanted, problems = uv_settings.apply(document, wanted, where, ignore)
    refuse(problems, where, uv_settings.HINT)
    requires = str(project.get("requires-python", ""))
    return checked({"python": pythons.chosen(requires, where, python), "pip": wanted})


def _known(name: str, among: dict[str, Any], where: str) -> str:
    if name not in among:
        has = ", ".join(sorted(among)) or "none"
        raise unreadable(where, f"there is no {name!r} in it", f"it has: {has}")
    return name


def _group(
    groups: dict[str, Any], name: str, where: str, inside: tuple[str, ...]
) -> list[str]:
    """A dependency group with those that it includes (PEP 735)."""
    if name in inside:
        raise unreadable(where, f"the group {name!r} includes itself")
    entries = groups[_known(name, groups, where)]
    found: list[str] = []
    for entry in entries if isinstance(entries, list) else [None]:
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, dict) and isinstance(entry.get("include-group"), str):
            found += _group(groups, entry["include-group"], where, (*inside, name))
        else:
            raise unreadable(where, f"the group {name!r} is not as PEP 735 has it")
    return found


def _other_tool(document: dict[str, Any]) -> str:
    tools = document.get("tool", {})
    if isinstance(tools, dict) and "poetry" in tools:
        return "poetry export -o requirements.txt, and give that"
    return "give a requirements.txt"
