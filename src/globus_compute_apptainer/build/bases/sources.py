"""What every kind of base image has in common: it is found, then perhaps made.

Runs in the endpoint process, in the thread of a build. See :mod:`.remote` and
:mod:`.localfiles`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system import flat

if TYPE_CHECKING:
    from globus_compute_apptainer.build.bases.tags import Tags
    from globus_compute_apptainer.build.job import Job

_TRUE: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True)
class Asked:
    """A build that wants its base.

    :param now: seconds since the epoch
    :param has: whether the base of a digest is on the shelf
    :param lock: held by one thread of all processes at a time, per key of the shelf
    """

    job: Job
    tags: Tags
    now: Callable[[], float]
    has: Callable[[str], bool]
    lock: Callable[[str], AbstractContextManager[object]]

    def alone(self, what: str) -> AbstractContextManager[object]:
        """The right to find out what a reference means, where that makes something."""
        return self.lock(f"sha256:{hashlib.sha256(what.encode()).hexdigest()}")

    @property
    def reference(self) -> str:
        return f"{self.job.image.agent}://{self.job.image.base_image}"


@dataclass(frozen=True)
class Found:
    """What a reference means.

    :param kind: ``registry``, ``library``, ``file`` or ``bootstrap``
    :param what: for people: what the SIF is made of
    :param asked_at: when that was so, seconds since the epoch
    :param make: writes the SIF to a path
    """

    digest: str
    kind: str
    what: str
    asked_at: float
    make: Callable[[Path], None]
    index_digest: str | None = None
    layers: tuple[str, ...] = ()


def speaks_http(job: Job, host: str) -> bool:
    """Whether a registry (``host[:port]``) is configured as without TLS."""
    everywhere = job.site.caller.get("APPTAINER_NOHTTPS", "").strip().lower()
    return host in job.config.http_registries or everywhere in _TRUE


def plain_flags(job: Job) -> list[str]:
    """Options of ``apptainer build`` where nothing is run and owners do not matter.

    An ordinary user needs none, not even subordinate ids; root may lack capabilities.
    """
    return list(job.apptainer.build_flags) if os.geteuid() == 0 else []


def built(job: Job, source: str, target: Path, options: Sequence[str] = ()) -> None:
    """Have Apptainer make a SIF of anything that it understands.

    :param source: such as ``docker://HOST/NAME@DIGEST`` or a sandbox
    :raises BuildError: it fails
    """
    argv = [job.apptainer.path, "build", *plain_flags(job)]
    argv += ["--disable-cache", *flat.packing(job.apptainer), *options]
    with_cache(job, [*argv, str(target), source], f"apptainer build from {source}")


def with_cache(job: Job, argv: Sequence[str], shown: str) -> None:
    """Run Apptainer with a cache and a temporary directory of this build alone."""
    place = job.scratch / "apptainer"
    place.mkdir()
    extra = {"TMPDIR": str(place), "APPTAINER_TMPDIR": str(place)}
    extra["APPTAINER_CACHEDIR"] = str(place / "cache")
    env = {**job.apptainer.environment(), **job.site.caller, **extra}
    try:
        job.run(argv, env=env, shown=shown)
    finally:
        remove_tree(place)
