"""What a build is to do: an image's spec turned into a recipe.

Runs in the endpoint process; pure. The definition file that Apptainer gets is a
constant but for the base's name: everything else that a user wrote travels in data
files, which the build sees read-only and which ``stages.sh`` reads without ever
giving them to a shell as text (``post`` excepted: it *is* a shell script).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.errors import SpecError

if TYPE_CHECKING:
    from globus_compute_apptainer.spec.model import ImageSpec

KIT: Final = "/.gc-apptainer"
"""Where a build sees the recipe's files; in a finished image an empty directory."""

STAGES: Final = ("pull", "apt", "pip", "post", "pack", "probe")
"""Every stage of a build, in order."""

DEFINITION: Final = """\
Bootstrap: {agent}
From: {base}

%setup
    mkdir -p "$APPTAINER_ROOTFS{kit}"

%post
    exec /bin/sh {kit}/stages.sh
"""

_REGISTRY_AGENTS: Final = frozenset({"docker", "oras", "library"})
_FILE_AGENTS: Final = frozenset({"localimage", "docker-archive", "oci-archive", "oci"})
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z")
# Apptainer substitutes {{ }}, cuts at #, and takes a final backslash as continuation.
_PATH: Final = re.compile(r"/[^\s\x00-\x1f\x7f{}#\\\"'`$]+\Z")


@dataclass(frozen=True)
class Recipe:
    """All that a build needs to know of a spec.

    :param definition: text of the definition file
    :param files: name → content of the data files, each only where it is needed
    :param stages: the stages that this build will enter, in order
    """

    definition: str
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stages: tuple[str, ...] = STAGES


def plan(image: ImageSpec) -> Recipe:
    """The recipe for ``image``.

    Guaranteed: of the spec, only ``agent`` and ``base_image`` are in the
    definition, and neither can add a line or a substitution to it.

    :raises SpecError: a base that must not be written into a definition file, or
        data with line breaks or control characters; :mod:`.spec` has refused both
        before
    """
    lists = {"requirements.txt": image.pip, "apt.txt": image.apt, "post.sh": image.post}
    files = {name: _lines(name, rows) for name, rows in lists.items() if rows}
    if image.python is not None:
        files["python.txt"] = _lines("python.txt", (image.python,))
    used = {"apt": "apt.txt", "pip": "requirements.txt", "post": "post.sh"}
    stages = tuple(s for s in STAGES if s not in used or used[s] in files)
    return Recipe(definition(image.agent, image.base_image), files, stages)


def definition(agent: str, base: str) -> str:
    """The definition file that starts from ``base``.

    :raises SpecError: an unknown agent, or characters with a meaning of their own
    """
    if agent in _REGISTRY_AGENTS:
        allowed = _REFERENCE
    elif agent in _FILE_AGENTS:
        allowed = _PATH
    else:
        raise SpecError(
            "no such kind of base image", field="base_image_type", value=repr(agent)
        )
    if not allowed.match(base):
        raise SpecError(
            "a base image that cannot stand in a definition file",
            hint="use a plain image reference, or a path without blanks and quotes",
            field="base_image",
            value=repr(base),
        )
    return DEFINITION.format(agent=agent, base=base, kit=KIT)


def _lines(name: str, rows: tuple[str, ...]) -> str:
    """Rows as a text file; only ``post.sh`` may hold line breaks and tabs."""
    allowed = "\n\t" if name == "post.sh" else ""
    for row in rows:
        if any(c not in allowed and (ord(c) < 32 or ord(c) == 127) for c in row):
            raise SpecError("control character", field=name, value=repr(row))
    return "".join(f"{row}\n" for row in rows)
