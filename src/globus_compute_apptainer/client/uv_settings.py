"""What ``[tool.uv]`` of a script or project means for an image. Pure.

Some settings say how uv works on one machine, and mean nothing elsewhere; some say
what is installed, and would be silently lost. The former are left out, the latter
are named.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from typing import Any, Final

from globus_compute_apptainer.client.outcome import table, texts

HINT: Final = (
    'leave the setting out, or pass ignore=["tool.uv.…"] to do without it; package'
    " indexes are the endpoint's administrator's choice"
)

_OF_THE_MACHINE: Final = tuple(
    "allow-insecure-host build-backend cache-* compile-bytecode concurrent-* conflicts"
    " default-groups dev-dependencies environments http-* keyring-provider link-mode"
    " managed native-tls no-cache no-progress offline package pip preview"
    " preview-features publish-url pypy-install-mirror python-downloads"
    " python-install-mirror python-preference reinstall* required-environments"
    " required-version system-certs trusted-publishing upgrade* workspace".split()
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def apply(
    document: dict[str, Any],
    requirements: list[str],
    where: str,
    ignore: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """What the settings make of the requirements.

    ``sources`` that are archives on the web become ``NAME @ URL``, and
    ``constraint-dependencies`` on what is required directly become requirements.

    :param document: with ``[tool.uv]`` in it, or without
    :param ignore: settings to do without, as ``tool.uv.exclude-newer``
    :returns: the requirements, and what cannot be carried, one line each
    """
    settings = table(document, "tool", "uv", where=where)
    found, problems = list(requirements), []
    for name in sorted(settings):
        if f"tool.uv.{name}" in ignore or _of_the_machine(name):
            continue
        if name == "sources":
            sources = table(settings, "sources", where=where)
            found, lost = _sourced(found, sources, ignore)
        elif name == "constraint-dependencies":
            found, lost = _constrained(found, texts(settings, name, where))
        else:
            lost = [f"tool.uv.{name}"] if settings[name] not in ([], {}, "") else []
        problems += lost
    return found, problems


def _of_the_machine(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in _OF_THE_MACHINE)


def name_of(requirement: str) -> str:
    """The normalised name that a requirement begins with; empty if with none."""
    found = _NAME.match(requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def _sourced(
    requirements: list[str], sources: dict[str, Any], ignore: Collection[str]
) -> tuple[list[str], list[str]]:
    urls, problems = {}, []
    used = {name_of(line) for line in requirements}
    for name, source in sources.items():
        label = f"tool.uv.sources.{name}"
        if name_of(name) not in used or label in ignore:
            continue
        if isinstance(source, dict) and source.keys() == {"url"}:
            urls[name_of(name)] = str(source["url"])
        else:
            problems.append(f"{label} ({_kind(source)})")
    return [_from(line, urls.get(name_of(line))) for line in requirements], problems


def _from(line: str, url: str | None) -> str:
    if url is None:
        return line
    head, semicolon, marker = line.partition(";")
    extras = re.search(r"\[[^\]]*\]", head)
    rest = f" ; {marker.strip()}" if semicolon else ""
    return f"{name_of(line)}{extras[0] if extras else ''} @ {url}{rest}"


def _kind(source: object) -> str:
    if not isinstance(source, dict):
        return "several sources"
    kinds = ("git", "path", "workspace", "index", "url")
    return next((kind for kind in kinds if kind in source), "of an unknown kind")


def _constrained(
    requirements: list[str], constraints: list[str]
) -> tuple[list[str], list[str]]:
    used = {name_of(line): line for line in requirements}
    found, problems = list(requirements), []
    for line in constraints:
        required = used.get(name_of(line))
        if required is None or ";" in required or "@" in required:
            problems.append(f"tool.uv.constraint-dependencies: {line}")
        else:
            found.append(line)
    return found, problems
