"""Containers from requirements files, with the files that they include.

Runs where the SDK runs: an endpoint cannot follow paths of the client.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.client.outcome import checked, refuse, text_of
from globus_compute_apptainer.client.uv_settings import name_of
from globus_compute_apptainer.spec.items import requirement_lines

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_INCLUDE: Final = re.compile(
    r"(-r|--requirement|-c|--constraint)(?:\s+|=|(?<=-[rc]))(.+)"
)
_HASH: Final = re.compile(r"\s--hash(?:=|\s+)(\S+)")
_OPTION: Final = re.compile(r"(--?[A-Za-z][A-Za-z-]*)")
_HARMLESS: Final = frozenset(
    {
        "--require-hashes",
        "--prefer-binary",
        "--no-cache-dir",
        "--disable-pip-version-check",
    }
)
_PATH: Final = re.compile(r"[./~]|file:|[^\s@]*[/\\][^\s@]*$")
_HINT: Final = (
    "indexes are the endpoint's administrator's choice; give local projects as"
    " payload_url; `uv pip compile FILE -c CONSTRAINTS` writes constraints in"
)


def from_requirements(
    path: str | Path,
    *,
    python: str | None = None,
    skip: Collection[str] = (),
    hashes: bool = True,
) -> dict[str, Any]:
    """The spec for a requirements file, ``-r`` and ``-c`` followed.

    Constraints on packages that are required directly become part of the
    requirements; others cannot be carried and are named. Where every requirement has
    hashes they travel too (as a requirements.txt in ``files``), and exactly these files
    are installed; hashes of some only are left out.

    :param python: minor version to ask for; by default the endpoint chooses
    :param skip: names of packages whose requirements and constraints are left out
    :param hashes: False to leave all hashes out, where they are too much for a spec
    :raises SpecError: a file cannot be read, or has what cannot be carried (options
        such as ``--index-url``, paths, editable projects): all of it named
    """
    seen = _Files(frozenset(map(name_of, skip)))
    seen.read(Path(path), constraints=False)
    lines = seen.merged()
    refuse(seen.problems, str(path), _HINT)
    if hashes and lines and all(line in seen.hashes for line in lines):
        text = "".join(f"{line} {seen.hashes[line]}\n" for line in lines)
        return checked({"python": python, "files": {"requirements.txt": text}})
    return checked({"python": python, "pip": lines})


@dataclass
class _Files:
    """The lines of a file and of those that it includes."""

    skip: frozenset[str]
    wanted: list[tuple[str, str]] = field(default_factory=list)
    limits: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    known: set[tuple[Path, bool]] = field(default_factory=set)

    def read(self, path: Path, *, constraints: bool) -> None:
        if (path.absolute(), constraints) in self.known:
            return
        self.known.add((path.absolute(), constraints))
        for number, line in requirement_lines(text_of(path)):
            self._line(path, f"{path}:{number}", line, constraints)

    def _line(self, path: Path, at: str, line: str, constraints: bool) -> None:
        include = _INCLUDE.fullmatch(line)
        option = _OPTION.match(line)
        if include and "://" not in include[2]:
            more = path.parent / include[2].strip().strip("\"'")
            self.read(more, constraints=constraints or include[1] in _CONSTRAINTS)
        elif option and option[1] in _HARMLESS:
            return
        elif option or _PATH.match(line):
            self.problems.append(f"{at}: {line}")
        else:
            entry = _HASH.sub("", f" {line}").strip()
            if found := _HASH.findall(line):
                self.hashes[entry] = " ".join(f"--hash={one}" for one in found)
            if name_of(entry) not in self.skip:
                (self.limits if constraints else self.wanted).append((at, entry))

    def merged(self) -> list[str]:
        """The requirements, with the constraints in them."""
        found = [line for _, line in self.wanted]
        required: dict[str, list[Requirement | None]] = {}
        for line in found:
            required.setdefault(name_of(line), []).append(_parsed(line))
        for at, line in self.limits:
            limit = _parsed(line)
            theirs = required.get(name_of(line))
            if limit is None or limit.url or theirs is None:
                self.problems.append(f"{at}: {line} (a constraint)")
                continue
            found += [_limited(one, limit) for one in theirs if one is not None]
        return list(dict.fromkeys(found))


_CONSTRAINTS: Final = ("-c", "--constraint")


def _parsed(line: str) -> Requirement | None:
    """None for what is no requirement; the spec's own check says so, in words."""
    from packaging.requirements import (  # noqa: PLC0415 - not every client needs it
        InvalidRequirement,
        Requirement,
    )

    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _limited(required: Requirement, limit: Requirement) -> str:
    """``limit`` where ``required`` applies: what a constraint on it means."""
    markers = [f"({one.marker})" for one in (required, limit) if one.marker]
    rest = f" ; {' and '.join(markers)}" if markers else ""
    return f"{limit.name}{limit.specifier}{rest}"
