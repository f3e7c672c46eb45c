"""Containers from lock files: ``uv.lock`` and ``pylock.toml`` (PEP 751).

Runs where the SDK runs, and needs no uv. Lock files say what to install on every
platform; taken is what they say of Linux with one minor version of Python, for x86-64
and ARM alike (where the two differ, by a marker). Micro versions are not known here:
what only some of them need is taken too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer.client import pythons
from globus_compute_apptainer.client.outcome import (
    checked,
    refuse,
    text_of,
    toml,
    unreadable,
)
from globus_compute_apptainer.client.pin import Pin
from globus_compute_apptainer.client.pylock import from_pylock
from globus_compute_apptainer.client.uv_lock import from_uv_lock

MACHINES: Final = ("x86_64", "aarch64")
_MICROS: Final = (0, 39)
_PYLOCK: Final = re.compile(r"pylock\.([^.]+\.)?toml")
_HINT: Final = (
    "give released packages or https:// archives, or name what to do without in skip"
)


def from_lock(
    path: str | Path,
    *,
    python: str | None = None,
    extras: Collection[str] = (),
    groups: Collection[str] = (),
    skip: Collection[str] = (),
) -> dict[str, Any]:
    """The spec for what a lock file holds: exact pins, without their hashes.

    Of ``uv.lock``, that is what the project needs, not the project itself. A
    container spec holds no hashes; the image's own lock has them.

    :param python: minor version to ask for, where the file lets it
    :param extras: of the project, to be added
    :param groups: dependency groups to be added (pylock: instead of the default ones)
    :param skip: names of packages to leave out
    :raises SpecError: it is no such file, or holds what cannot be carried (packages
        from git or from directories): all of it named
    """
    where, name = str(path), Path(path).name
    document = toml(text_of(Path(path)), where)
    requires = str(document.get("requires-python", ""))
    minor = pythons.chosen(requires, where, python)
    if name == "uv.lock" or name.endswith(".py.lock"):
        select = from_uv_lock
    elif _PYLOCK.fullmatch(name):
        select = from_pylock
    else:
        raise unreadable(where, "it is neither uv.lock nor pylock.toml")
    left_out = frozenset(skip)
    found = {
        environment["platform_machine"] + environment["python_full_version"]: {
            pin
            for pin in select(document, where, environment, extras, groups)
            if pin.name not in left_out
        }
        for environment in environments(minor)
    }
    return checked({"python": minor, "pip": _lines(found, where)})


def environments(minor: str) -> list[dict[str, str]]:
    """What markers are evaluated in: Linux, CPython, some machines and micros."""
    return [
        {
            "implementation_name": "cpython",
            "implementation_version": f"{minor}.{micro}",
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{minor}.{micro}",
            "python_version": minor,
            "sys_platform": "linux",
        }
        for machine, micro in product(MACHINES, _MICROS)
    ]


def _lines(found: Mapping[str, set[Pin]], where: str) -> list[str]:
    """Requirement lines for what is needed here and there."""
    on = {
        machine: set().union(
            *(p for key, p in found.items() if key.startswith(machine))
        )
        for machine in MACHINES
    }
    every: set[Pin] = set().union(*on.values())
    problems = [f"{pin.name}: {pin.problem}" for pin in sorted(every) if pin.problem]
    for pins in on.values():
        problems += _twice(pins)
    refuse(list(dict.fromkeys(problems)), where, _HINT)
    lines = []
    for pin in sorted(every):
        machines = [machine for machine in MACHINES if pin in on[machine]]
        only = "" if len(machines) > 1 else f' ; platform_machine == "{machines[0]}"'
        lines.append(f"{pin.name}{pin.source}{only}")
    return lines


def _twice(pins: set[Pin]) -> list[str]:
    """Packages of which one environment gets one version and another gets another."""
    sources: dict[str, list[str]] = {}
    for pin in sorted(pins):
        sources.setdefault(pin.name, []).append(pin.source.lstrip("= @"))
    return [
        f"{name}: {' or '.join(several)}, depending on the micro version of Python"
        for name, several in sources.items()
        if len(several) > 1
    ]
