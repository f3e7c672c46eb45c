"""Builds an image: plan, build, check, probe; and says why it did not work.

Runs in the endpoint process, in whatever thread calls it; several builds may run at
once, each in its own scratch directory.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build import flat, probe
from globus_compute_apptainer.build.diagnose import Diagnosis, diagnose
from globus_compute_apptainer.build.plan import Recipe, plan
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.errors import BuildError

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from globus_compute_apptainer import events
    from globus_compute_apptainer.build.apptainer import Apptainer, Completed
    from globus_compute_apptainer.build.probe import Probe
    from globus_compute_apptainer.build.site import SiteAccess
    from globus_compute_apptainer.config import BuildConfig
    from globus_compute_apptainer.spec.model import ImageSpec

_HINTS: Final = {
    "no-python": "choose a base image with Python, such as python:3.11-slim, or add "
    '"python3" to `apt`',
    "no-pip": 'add "python3-pip" to `apt`, or choose another base image',
    "python-mismatch": "leave `python` out, or choose a base image that has it",
    "no-apt": "`apt` needs a base image of the Debian family",
}


@dataclass(frozen=True)
class Built:
    """A finished image, not yet in the store.

    :param sif: the image file, in the build's scratch directory
    :param base: the base's reference, ``agent://…``
    :param base_digest: ``sha256:…`` if the reference names it, else None
    :param stage_seconds: wall-clock seconds by stage, of the stages entered
    """

    sif: Path
    base: str
    base_digest: str | None
    probe: Probe
    stage_seconds: Mapping[str, float]
    apptainer_version: str


class Builder:
    """Turns image specs into image files with one Apptainer, on one site."""

    def __init__(
        self, apptainer: Apptainer, config: BuildConfig, site: SiteAccess
    ) -> None:
        self._apptainer, self._config, self._site = apptainer, config, site

    def build(
        self,
        image: ImageSpec,
        *,
        scratch: Path,
        log: Path,
        sink: events.Sink,
        cancel: threading.Event,
    ) -> Built:
        """Build ``image``; the file is ``scratch/image.sif`` until the caller moves it.

        No process of the build is left when this returns or raises, and nothing
        but the image and its definition in ``scratch``.

        :param scratch: a private empty directory, see :mod:`.scratch`
        :param log: file to be written, line by line as things happen; credentials
            of the site's configuration are removed, and its last line says how the
            build ended
        :param sink: gets the events, in this thread
        :param cancel: ends the build once set
        :raises BuildError: with stage, command, the last lines, and a hint for
            causes that are known
        :raises SpecError: see :func:`~.plan.plan`
        """
        recipe = plan(image)
        try:
            with log.open("w", encoding="utf-8", errors="replace") as file:
                transcript = Transcript(
                    file,
                    digest=image.digest,
                    stages=recipe.stages,
                    sink=sink,
                    redact=self._site.redact,
                )
                job = _Job(self, image, recipe, scratch, log, transcript, cancel)
                return job.run()
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise BuildError(
                f"the build could not be set up: {error}",
                code="disk-full" if full else "build-failed",
                hint="free some room, or name a larger directory as `build.tmp_dir`"
                if full
                else "",
                log=str(log),
                stage="resolve",
            ) from error


class _Job:
    """One build: what it needs in all of its steps."""

    def __init__(
        self,
        builder: Builder,
        image: ImageSpec,
        recipe: Recipe,
        scratch: Path,
        log: Path,
        transcript: Transcript,
        cancel: threading.Event,
    ) -> None:
        self._apptainer = builder._apptainer
        self._config, self._site = builder._config, builder._site
        self._image, self._recipe, self._scratch = image, recipe, scratch
        self._log, self._transcript, self._cancel = log, transcript, cancel
        self._deadline = time.monotonic() + self._config.timeout
        self._base = f"{image.agent}://{image.base_image}"

    def run(self) -> Built:
        try:
            found = self._steps()
        except BuildError as error:
            self._transcript.finish(f"failed in {error.stage}: {error.code}")
            raise
        self._transcript.finish("done")
        return Built(
            sif=self._scratch / flat.IMAGE_NAME,
            base=self._base,
            base_digest=_named_digest(self._image.base_image),
            probe=found,
            stage_seconds=self._transcript.stage_seconds(),
            apptainer_version=self._apptainer.version,
        )

    def _steps(self) -> Probe:
        agent, base = self._image.agent, self._image.base_image
        self._transcript.enter("pull", f"apptainer build from {self._base}")
        ended = flat.build_flat(
            self._apptainer,
            self._recipe,
            self._site,
            self._scratch,
            http=flat.needs_http(agent, base, self._config.http_registries),
            timeout=self._left(),
            on_line=self._transcript.line,
            cancel=self._cancel,
        )
        self._check_end(ended)
        self._check_size()
        return self._probe()

    def _probe(self) -> Probe:
        self._transcript.enter("probe", "look into the image")
        found, ended = probe.probe(
            self._apptainer,
            self._scratch / flat.IMAGE_NAME,
            timeout=self._left(),
            on_line=self._transcript.line,
            cancel=self._cancel,
        )
        self._check_end(ended)
        if found is None:
            raise self._error("the image starts but does not answer")
        wanted = self._image.python
        if wanted and not f"{found.python_version or ''}.".startswith(f"{wanted}."):
            raise self._error(
                f"the image has Python {found.python_version}, {wanted} is asked for",
                code="python-mismatch" if found.python else "no-python",
            )
        return found

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _check_size(self) -> None:
        limit = self._config.max_image_size
        size = (self._scratch / flat.IMAGE_NAME).stat().st_size
        if limit is not None and size > limit:
            raise self._error(
                f"the image has {size / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB"
                " that this endpoint allows",
                code="image-too-large",
                hint="choose a smaller base image or fewer packages",
                stage="policy",
            )

    def _check_end(self, ended: Completed) -> None:
        """:raises BuildError: unless the program ended well"""
        said = self._transcript.failure
        if ended.cancelled:
            raise self._error("the build was cancelled", code="build-cancelled")
        if ended.timed_out:
            raise self._error(
                f"the build took longer than {self._config.timeout:g} s",
                code="build-timeout",
                hint="raise `build.timeout`, or ask for less",
            )
        if ended.ok:
            return
        if said is not None:
            raise self._error(
                f"the image cannot be built: {said.message}",
                code=said.code,
                hint=_HINTS.get(said.code, ""),
                stage=said.stage,
            )
        tail = self._transcript.tail
        raise self._diagnosed(diagnose(self._transcript.stage, tail, self._image.agent))

    def _diagnosed(self, cause: Diagnosis) -> BuildError:
        stage = self._transcript.stage
        because = f": {cause.message}" if cause.message else ""
        return self._error(
            f"building the image failed in stage {stage!r}{because}",
            code=cause.code,
            hint=cause.hint,
        )

    def _error(
        self,
        message: str,
        *,
        code: str = "build-failed",
        hint: str = "",
        stage: str | None = None,
    ) -> BuildError:
        return BuildError(
            message,
            hint=hint or _HINTS.get(code, ""),
            log=str(self._log),
            code=code,
            stage=self._transcript.stage if stage is None else stage,
            command=self._transcript.command,
            tail=tuple(self._transcript.tail),
        )


def _named_digest(reference: str) -> str | None:
    _, at, digest = reference.rpartition("@")
    return digest if at and digest.startswith("sha256:") else None
