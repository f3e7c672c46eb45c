"""What an image is to hold: its spec, and what its payload's own files ask for.

Runs in the endpoint process; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.conda import Conda, Environment, merged

if TYPE_CHECKING:
    from globus_compute_apptainer.spec.ingest import Ingested
    from globus_compute_apptainer.spec.model import ImageSpec


@dataclass(frozen=True)
class Wanted:
    """What to put over the base, whoever asked for it.

    :param python: minor version that the image must have; None: any
    :param constraints: requirements that hold for whatever gets installed
    :param hashes: name → ``algorithm:hex`` of the files that a package may be
    :param projects: what to install from the payload itself: ``.`` or ``./PATH``,
        perhaps with ``[extras]``
    :param post_build: whether the payload has a ``postBuild`` to run
    """

    python: str | None
    apt: tuple[str, ...]
    conda: Conda | None
    pip: tuple[str, ...]
    post: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    projects: tuple[str, ...] = ()
    post_build: bool = False

    @property
    def packages(self) -> bool:
        """Whether any Python package is wanted."""
        return bool(self.pip or self.projects)


def wanted(image: ImageSpec, payload: Ingested | None) -> Wanted:
    """The spec's wishes and the payload's, together.

    :raises SpecError: they want different versions of Python
    """
    if payload is None:
        return Wanted(image.python, image.apt, image.conda, image.pip, image.post)
    return Wanted(
        python=_one_python(image.python, payload.python),
        apt=_union(image.apt, payload.apt),
        conda=_conda(image.conda, payload.conda),
        pip=_union(image.pip, payload.pip),
        post=(*payload.install_steps, *image.post),
        constraints=payload.constraints,
        hashes=_hashes(payload),
        projects=payload.projects,
        post_build=payload.post_build,
    )


def _union(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*ours, *theirs}))


def _hashes(payload: Ingested) -> dict[str, tuple[str, ...]]:
    """By the normal form's name, which ends before anything else begins."""
    found: dict[str, tuple[str, ...]] = {}
    for requirement, hashes in payload.hashes:
        name = re.split(r"[^a-z0-9-]", requirement, maxsplit=1)[0]
        found[name] = (*found.get(name, ()), *hashes)
    return found


def _conda(ours: Conda | None, theirs: Conda | None) -> Conda | None:
    return merged(Environment(ours), Environment(theirs)).conda


def _one_python(ours: str | None, theirs: str | None) -> str | None:
    if ours and theirs and ours != theirs:
        raise SpecError(
            f"the payload is made for Python {theirs}, and the image is to have {ours}",
            hint=f'set `python: "{theirs}"` in the spec, or leave `base_image` out',
            code="python-mismatch",
            field="python",
            value=ours,
        )
    return ours or theirs
