"""Containers like the environment that a client runs in.

Runs where the SDK runs; reads what is installed, and runs none of it.
"""

from __future__ import annotations

import json
import site
import sys
import sysconfig
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer.client import conda_environment, pythons
from globus_compute_apptainer.client.outcome import checked, refuse, unreadable
from globus_compute_apptainer.client.uv_settings import name_of

_NOT_IN_IMAGES: Final = frozenset({"pip", "uv", "globus-compute-apptainer"})
"""What makes environments, and what tasks find in every container anyway."""

_HINT: Final = (
    "give local code as payload_url or as a released package, or name what tasks do not"
    " need in skip=[…]"
)


def from_environment(*, skip: Collection[str] = ()) -> dict[str, Any]:
    """The spec for an environment like this one: its Python and exact pins::

        Executor(..., resource_specification={"container": from_environment()})

    Everything that this Python can import counts, with a conda environment's own
    packages in ``conda``: on Linux with their builds, elsewhere only those that were
    asked for by name. Wheels are chosen anew where the image is built, so a client on
    another system needs versions that exist for Linux too.

    :param skip: names of packages to leave out
    :raises SpecError: something is installed that no index has (editable projects,
        directories, files, git, modules on ``PYTHONPATH``): all of it named
    """
    if sys.implementation.name != "cpython":
        raise unreadable("this environment", "it is not of CPython")
    left_out = _NOT_IN_IMAGES | frozenset(map(name_of, skip))
    conda = conda_environment.packages(Path(sys.prefix), left_out)
    pins, problems = [], []
    for found in _installed(left_out):
        if conda is not None and _installer(found) == "conda":
            continue
        line, problem = _pin(found)
        pins.append(line)
        problems += problem
    refuse(sorted(problems), "this environment", _HINT)
    return checked({"python": pythons.running(), "pip": sorted(pins), "conda": conda})


def _installed(left_out: frozenset[str]) -> Iterator[metadata.Distribution]:
    """Each distribution that counts, once: the first one on ``sys.path``."""
    seen = set(left_out)
    for found in metadata.distributions():
        name = name_of(found.metadata["Name"] or "")
        if name and name not in seen:
            seen.add(name)
            yield found


def _pin(found: metadata.Distribution) -> tuple[str, list[str]]:
    """A requirement line, and what forbids it."""
    name = name_of(found.metadata["Name"])
    origin = _origin(found)
    if origin is None:
        reason = _stray(found)
        problem = [f"{name} {found.version}: {reason}"] if reason else []
        return f"{name}=={found.version}", problem
    url = str(origin.get("url", ""))
    if "archive_info" in origin and url.startswith("https://"):
        return f"{name} @ {url}", []
    return name, [f"{name} {found.version}: {_how(origin)}"]


def _origin(found: metadata.Distribution) -> dict[str, Any] | None:
    """Where it was installed from, if not from an index (PEP 610)."""
    text = found.read_text("direct_url.json")
    try:
        origin = json.loads(text) if text else None
    except ValueError:
        origin = {}
    return origin if isinstance(origin, dict) else None


def _how(origin: dict[str, Any]) -> str:
    url = str(origin.get("url", "a place that it does not tell"))
    place = f"{url.partition('//')[0]}//{url.rpartition('@')[2]}" if "@" in url else url
    if "vcs_info" in origin:
        return f"installed from {origin['vcs_info'].get('vcs', 'git')}: {place}"
    directory = origin.get("dir_info")
    if isinstance(directory, dict) and directory.get("editable"):
        return f"an editable install of {place}"
    return f"installed from {place}"


def _stray(found: metadata.Distribution) -> str:
    """Why a distribution without an origin is not from an index; empty if it is."""
    place = Path(str(found.locate_file(""))).resolve()
    if any(place == folder or folder in place.parents for folder in _folders()):
        return ""
    return f"used in place, in {place}"


def _folders() -> list[Path]:
    """Where installers put packages."""
    paths = sysconfig.get_paths()
    found = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    found.append(site.getusersitepackages())
    found += [path for path in sys.path if path.endswith("-packages")]
    return [Path(path).resolve() for path in found]


def _installer(found: metadata.Distribution) -> str:
    return (found.read_text("INSTALLER") or "").strip()
