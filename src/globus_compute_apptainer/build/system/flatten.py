"""From an image with layers to one plain SIF, for whoever cannot show layers.

Runs in ``gc-apptainer``. Needs the image file only, not what it was made from: the
layers are the overlay partitions inside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from globus_compute_apptainer import events
from globus_compute_apptainer.build import sif
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.layers import copy_file
from globus_compute_apptainer.build.order import STAGES
from globus_compute_apptainer.build.system.flat import build_flat
from globus_compute_apptainer.build.transcript import Transcript

if TYPE_CHECKING:
    import threading
    from typing import TextIO

    from globus_compute_apptainer.build.apptainer import Apptainer
    from globus_compute_apptainer.build.site import SiteAccess
    from globus_compute_apptainer.config import BuildConfig
    from globus_compute_apptainer.spec.model import ImageSpec


def flatten(job: Job, image: Path, target: Path, more: Sequence[Path] = ()) -> None:
    """Write ``target``, one file system with all that ``image`` shows.

    :param more: squashfs files to be laid over it, such as its bytecode
    :raises BuildError: it cannot be written; nothing is left
    """
    try:
        parts = sif.overlays(sif.parts(image))
    except sif.SifError as error:
        raise job.error(f"the image cannot be flattened: it is {error}") from None
    if not parts and not more:
        copy_file(image, target, job.check)
        return
    build_flat(job, image, [Layer("", "", file) for file in more], target)


def job_for(
    image: ImageSpec,
    apptainer: Apptainer,
    config: BuildConfig,
    site: SiteAccess,
    *,
    scratch: Path,
    log: Path,
    file: TextIO,
    sink: events.Sink,
    cancel: threading.Event,
) -> Job:
    """A job that is no build: nothing of ``image`` is looked at but its name.

    :param log: path of ``file``, which gets the log
    """
    transcript = Transcript(
        file, digest=image.digest, stages=STAGES, sink=sink, redact=site.redact
    )
    return Job(
        image=image,
        apptainer=apptainer,
        config=config,
        site=site,
        scratch=scratch,
        log=log,
        transcript=transcript,
        cancel=cancel,
        deadline=time.monotonic() + config.timeout,
    )
