"""What a build's own programs are given: constant texts, and the user's words as data.

Runs in the endpoint process; pure. No definition file that Apptainer gets holds
anything of a user's: what a user wrote travels in data files of the *kit*, which a
build sees read-only and which ``stages.sh`` reads without ever giving them to a shell
as text (``post`` excepted: it *is* a shell script).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from globus_compute_apptainer.errors import SpecError

KIT: Final = "/.gc-apptainer-build"
"""Where a build sees the kit; in a flat image an empty directory, in layers absent."""

FLAT_DEFINITION: Final = f"""\
Bootstrap: localimage
From: base.sif

%setup
    mkdir -p "$APPTAINER_ROOTFS{KIT}"
    exec "$GC_APPTAINER_PYTHON" -I -S -B "$GC_APPTAINER_PROGRAM" \
"$APPTAINER_ROOTFS" "$GC_APPTAINER_LAYERS"

%post
    exec /bin/sh {KIT}/stages.sh
"""
"""Apptainer runs in a directory where ``base.sif`` is a link to the base."""

HOST_DEFINITION: Final = """\
Bootstrap: scratch

%setup
    exec "$GC_APPTAINER_PYTHON" -I -S -B "$GC_APPTAINER_PROGRAM" "$GC_APPTAINER_ORDER"
"""
"""A build of nothing: its setup runs on the host, as root of the build's namespace,
where every file of a build can be read and shows the owner it has inside."""


def kit_files(
    *,
    apt: Sequence[str] = (),
    post: Sequence[str] = (),
    post_build: bool = False,
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Name → content of the kit's data files, each only where it is needed.

    :param post_build: whether the payload's ``postBuild`` is to be run
    :param environment: variables of the build; values may hold anything but NUL
    :raises SpecError: data with line breaks or control characters;
        :mod:`~..spec` has refused it before
    """
    files = {"environment.sh": _exports(environment or {})}
    if apt:
        files["apt.txt"] = _lines("apt", apt)
    if post:
        files["post.sh"] = _lines("post", post, allowed="\n\t")
    if post_build:
        files["post-build.txt"] = "postBuild\n"
    return files


def _exports(variables: Mapping[str, str]) -> str:
    """A script that sets variables; in single quotes a shell evaluates nothing."""
    return "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()
    )


def _lines(field: str, rows: Sequence[str], *, allowed: str = "") -> str:
    for row in rows:
        if any(c not in allowed and (ord(c) < 32 or ord(c) == 127) for c in row):
            raise SpecError("control character", field=field, value=repr(row))
    return "".join(f"{row}\n" for row in rows)
