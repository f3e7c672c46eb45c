"""Base images from registries and libraries.

Runs in the endpoint process, in the thread of a build.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.bases import pull
from globus_compute_apptainer.build.bases.registry import Name, Registry, Resolved
from globus_compute_apptainer.build.bases.sources import (
    Asked,
    Found,
    built,
    speaks_http,
    with_cache,
)
from globus_compute_apptainer.build.bases.tags import Known, sha256_of, written_time
from globus_compute_apptainer.build.layers import copy_file
from globus_compute_apptainer.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

FRESH_SECONDS: Final = 600.0
"""How long a tag is believed to mean what it meant."""


@contextlib.contextmanager
def found(asked: Asked) -> Iterator[Found]:
    """An image of a registry (``docker``, ``oras``), to be made within the block.

    :raises BuildError: there is none, or the registry does not say
    """
    name = Name.of(asked.job.image.agent, asked.job.image.base_image)
    http = speaks_http(asked.job, name.host)
    with Registry.opened(asked.job, name.host, http=http) as registry:
        yield _Remote(asked, name, registry, http).found()


@contextlib.contextmanager
def library(asked: Asked) -> Iterator[Found]:
    """An image of a library, known by its content.

    A library is not asked what a tag means: the image is pulled once, and again only
    by a job that is ``fresh``. Never tried with a real library.

    :raises BuildError: there is none, or the library does not answer
    """
    job, key = asked.job, (asked.reference, asked.job.machine)
    with asked.alone("\0".join(key)):
        known = asked.tags.read(*key)
        if known is None or not asked.has(known.digest) or job.fresh:
            job.enter("pull", asked.reference)
            file = job.scratch / "library.sif"
            file.unlink(missing_ok=True)
            argv = [job.apptainer.path, "pull", "--disable-cache", str(file)]
            with_cache(job, [*argv, asked.reference], "apptainer pull")
            known = Known(sha256_of(file, lambda _: job.check()), asked.now())
            asked.tags.write(known, *key)

        def make(target: Path) -> None:
            copy_file(job.scratch / "library.sif", target, job.check)
            (job.scratch / "library.sif").unlink()

        at = known.asked_at
        yield Found(known.digest, "library", asked.reference, at, make)


class _Remote:
    """One reference to a registry."""

    def __init__(
        self, asked: Asked, name: Name, registry: Registry, http: bool
    ) -> None:
        self._asked, self._job = asked, asked.job
        self._name, self._registry, self._http = name, registry, http
        self._key = (asked.reference, asked.job.machine)
        self._resolved: Resolved | None = None

    def found(self) -> Found:
        known = self._known()
        agent = self._job.image.agent
        return Found(
            digest=known.digest,
            kind="registry",
            what=f"{agent}://{self._name.at(known.digest)}",
            asked_at=known.asked_at,
            make=lambda target: self._make(known, target),
            index_digest=known.index_digest,
            layers=known.layers,
        )

    def _known(self) -> Known:
        """What the reference means: as was known, or asked now."""
        known = self._asked.tags.read(*self._key)
        if known is None and self._asked.has(self._name.reference):
            return Known(self._name.reference, self._asked.now())
        here = known is not None and self._asked.has(known.digest)
        if known and here and self._is_fresh(known):
            return known
        try:
            found = self._ask(known if here else None)
        except BuildError as error:
            down = error.code == "registry-unreachable"
            if known is None or not here or not down or self._job.fresh:
                raise
            self._job.transcript.note(
                f"{error.message}: going on with what {self._asked.reference} meant at "
                f"{written_time(known.asked_at)}, {known.digest}"
            )
            return known
        self._asked.tags.write(found, *self._key)
        return found

    def _is_fresh(self, known: Known) -> bool:
        """A digest means the same for ever."""
        if self._name.is_digest:
            return True
        age = self._asked.now() - known.asked_at
        return not self._job.fresh and 0 <= age < FRESH_SECONDS

    def _ask(self, known: Known | None) -> Known:
        now = self._asked.now()
        if known and self._registry.digest_of(self._name) == known.top_digest:
            return Known(known.digest, now, known.index_digest, known.layers)
        found = self._registry.resolve(self._name, self._job.machine)
        self._resolved = found
        self._job.transcript.note(f"{self._asked.reference} is {found.digest}")
        return Known(found.digest, now, found.index_digest, found.layers)

    def _make(self, known: Known, target: Path) -> None:
        options = ["--no-https"] if self._http else []
        source = f"{self._job.image.agent}://{self._name.at(known.digest)}"
        if self._job.image.agent == "oras":
            argv = [self._job.apptainer.path, "pull", "--disable-cache", *options]
            with_cache(self._job, [*argv, str(target), source], "apptainer pull")
            return
        resolved = self._resolved
        if resolved is None:
            exact = Name(self._name.host, self._name.repository, known.digest)
            resolved = self._registry.resolve(exact, self._job.machine)
        made = pull.attempt(self._job, self._registry, self._name, resolved, target)
        if not made:
            built(self._job, source, target, options)
