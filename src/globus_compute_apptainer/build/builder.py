"""Builds an image: base, layers, one file, a look into it; and says why it failed.

Runs in the endpoint process, in whatever thread calls it; several builds may run at
once, each in its own scratch directory. Layers are made in the order ``apt``,
``conda``, ``pip``, ``payload``, ``post``: what changes least often lies lowest, so
that specs share as much as they can.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from globus_compute_apptainer.build import probe, squashfs
from globus_compute_apptainer.build.apptainer import without_proxies
from globus_compute_apptainer.build.assembly import Assembly
from globus_compute_apptainer.build.bases.base import Base, Bases
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layer import HOME, PAYLOAD, layer_key
from globus_compute_apptainer.build.order import (
    STAGES,
    Built,
    Compile,
    Order,
    Place,
    Shelves,
    ignore,
    unheeded,
)
from globus_compute_apptainer.build.payload.payload import fetch
from globus_compute_apptainer.build.python import bytecode
from globus_compute_apptainer.build.record import lock
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.build.wanted import wanted
from globus_compute_apptainer.errors import BuildError, is_full, is_refused

if TYPE_CHECKING:
    from globus_compute_apptainer import events
    from globus_compute_apptainer.build.apptainer import Apptainer
    from globus_compute_apptainer.build.probe import Probe
    from globus_compute_apptainer.build.site import SiteAccess
    from globus_compute_apptainer.config import BuildConfig
    from globus_compute_apptainer.pieces import Known


class Builder:
    """Turns image specs into image files with one Apptainer, on one site."""

    def __init__(
        self,
        apptainer: Apptainer,
        config: BuildConfig,
        site: SiteAccess,
        shelves: Shelves,
    ) -> None:
        self._apptainer, self._config, self._site = apptainer, config, site
        self._shelves = shelves
        self._bases = Bases(shelves.bases, shelves.tags)

    def build(
        self,
        order: Order,
        place: Place,
        *,
        sink: events.Sink,
        cancel: threading.Event,
        finished: Callable[[Known], None] = unheeded,
        layered: Callable[[Compile], None] = ignore,
    ) -> Built:
        """Build an image into ``place.target``.

        No process of the build is left when this returns or raises.

        :param sink: gets the events, in this thread
        :param cancel: ends the build once set
        :param finished: called in a thread of its own as soon as the file is whole,
            while it is still looked into, with what was copied into it; this waits
            for it
        :param layered: called as soon as the layers of an image with Python packages
            are whole, with what compiles them; that needs nothing of ``place``
        :raises BuildError: with stage, command, the last lines, and a hint for
            causes that are known
        :raises SpecError: the payload's own files are not acceptable
        :raises PolicyError: they ask for what ``order.policy`` does not allow
        """
        with _opened(place.log) as file:
            job = self._job(order, place, file, sink, cancel)
            try:
                built = self._steps(job, order, place.target, finished, layered)
            except BuildError as error:
                if order.locked is not None:
                    error = lock.unavailable(error)
                job.transcript.finish(f"failed in {error.stage}: {error.code}")
                raise error from None
            except OSError as error:
                job.transcript.finish(f"failed: {error}")
                raise _failed(job, error) from error
            except BaseException as error:
                job.transcript.finish(f"failed: {type(error).__name__}: {error}")
                raise
            finally:
                job.settle()
            job.transcript.finish("done")
            return built

    def compile_bytecode(
        self,
        image: Path,
        python: str,
        target: Path,
        *,
        scratch: Path,
        cancel: threading.Event,
    ) -> bool:
        """Compile the Python of a layered image into a layer of its own.

        :param python: absolute path inside, of the Python that will use it
        :param target: the squashfs file to write
        :returns: whether it is there
        """
        return bytecode.compile_bytecode(
            self._apptainer,
            image,
            [HOME, PAYLOAD],
            python,
            target,
            scratch,
            key=layer_key("bytecode", image=str(image)),
            timeout=self._config.timeout,
            cancel=cancel,
        )

    def _compile(self, assembly: Assembly) -> Compile:
        """What compiles the layers of an image in the making, from the shelf."""
        below, wheels = assembly.below, assembly.wheels
        key = layer_key("bytecode", below=below.keys)

        def compile_layers(
            target: Path, scratch: Path, cancel: threading.Event
        ) -> bool:
            if wheels is not None:
                compiled, layer = wheels
                run = functools.partial(
                    bytecode.ran_behind,
                    env=without_proxies(self._apptainer.environment()),
                    timeout=self._config.timeout,
                    on_line=bytecode.ignore,
                    cancel=cancel,
                )
                if compiled.pack(layer.file, target, key, run):
                    return True
            return bytecode.compile_bytecode(
                self._apptainer,
                below.sif,
                [HOME, PAYLOAD],
                None,
                target,
                scratch,
                key=key,
                timeout=self._config.timeout,
                cancel=cancel,
                options=below.overlays,
            )

        return compile_layers

    def _job(
        self,
        order: Order,
        place: Place,
        file: TextIO,
        sink: events.Sink,
        cancel: threading.Event,
    ) -> Job:
        transcript = Transcript(
            file,
            digest=order.image.digest,
            stages=STAGES,
            sink=sink,
            redact=self._site.redact,
        )
        return Job(
            image=order.locked.pinned(order.image) if order.locked else order.image,
            apptainer=self._apptainer,
            config=self._config,
            site=self._site,
            scratch=place.scratch,
            log=place.log,
            transcript=transcript,
            cancel=cancel,
            policy=order.policy,
            fresh=order.fresh,
            deadline=time.monotonic() + self._config.timeout,
        )

    def _steps(
        self,
        job: Job,
        order: Order,
        target: Path,
        finished: Callable[[Known], None],
        layered: Callable[[Compile], None],
    ) -> Built:
        payload = fetch(job)
        wishes = wanted(order.image, payload.ingested if payload else None)
        base = self._bases.get(job)
        assembly = Assembly(job, self._shelves, base, order.locked)
        assembly.add(wishes, payload)
        assembly.add_post()
        if assembly.compiles:
            layered(self._compile(assembly))
        found = self._complete(assembly, target, finished)
        return self._built(job, order, base, assembly, found)

    def _complete(
        self, assembly: Assembly, target: Path, finished: Callable[[Known], None]
    ) -> Probe:
        """Write the image and look into it; once more, flat, if layers do not show."""
        found = self._written(assembly, target, finished)
        if found.missing and not assembly.flat:
            assembly.make_flat("this host does not show the layers of an image")
            target.unlink()
            found = self._written(assembly, target, finished)
        if found.missing:
            raise assembly.job.error(
                f"the image lacks what was put into it: {found.missing[0]}"
            )
        return found

    def _written(
        self, assembly: Assembly, target: Path, finished: Callable[[Known], None]
    ) -> Probe:
        job = assembly.job
        assembly.write(target)
        self._check_size(job, target)
        job.enter("probe", "look into the image")
        known = assembly.known(target)
        beside = threading.Thread(target=finished, args=(known,), name="image-finished")
        beside.start()
        try:
            return self._probe(job, target, assembly)
        finally:
            beside.join()

    def _probe(self, job: Job, target: Path, assembly: Assembly) -> Probe:
        found, ended = probe.probe(
            job.apptainer,
            target,
            timeout=job.left(),
            on_line=job.transcript.line,
            cancel=job.cancel,
            files=assembly.markers,
        )
        job.judge(ended)
        if found is None:
            raise job.error("the image starts but does not answer")
        wishes = assembly.python
        if wishes and not f"{found.python_version or ''}.".startswith(f"{wishes}."):
            raise job.error(
                f"the image has Python {found.python_version}, {wishes} is asked for",
                code="python-mismatch" if found.python else "no-python",
            )
        return found

    def _check_size(self, job: Job, target: Path) -> None:
        limit, size = self._config.max_image_size, target.stat().st_size
        if limit is not None and size > limit:
            raise job.error(
                f"the image has {size / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB"
                " that this endpoint allows",
                code="image-too-large",
                hint="choose a smaller base image or fewer packages",
                stage="policy",
            )

    def _built(
        self,
        job: Job,
        order: Order,
        base: Base,
        assembly: Assembly,
        found: Probe,
    ) -> Built:
        tools = {"apptainer": job.apptainer.version, "mksquashfs": _packer()}
        record = lock.assemble(
            base.lock, assembly.made, tools, json.loads(order.image.canonical())
        )
        if order.locked and (unmet := lock.differences(order.locked, record)):
            raise lock.unmet(unmet, str(job.log))
        return Built(
            base=base.reference,
            base_digest=base.digest,
            probe=found,
            layers=assembly.made,
            markers=assembly.markers,
            reason=assembly.reason,
            start=assembly.start,
            lock=record,
            stage_seconds=job.transcript.stage_seconds(),
            apptainer_version=job.apptainer.version,
        )


def _packer() -> str:
    return ".".join(map(str, squashfs.version() or ())) or "unknown"


def _opened(log: Path) -> TextIO:
    try:
        return log.open("w", encoding="utf-8", errors="replace")
    except OSError as error:
        raise BuildError(
            f"the build's log cannot be written: {error}",
            hint="there must be room for it below `cache_dir`, which must be writable",
            code="disk-full" if is_full(error) else "cache-unusable",
            stage="resolve",
        ) from error


def _failed(job: Job, error: OSError) -> BuildError:
    code, hint = "build-failed", ""
    if is_full(error):
        code = "disk-full"
        hint = "free some room, or name a larger directory as `build.tmp_dir`"
    elif is_refused(error):
        code = "host-unsuitable"
        hint = (
            "`build.tmp_dir` and `cache_dir` must stay writable while images are made"
        )
    return job.error(f"the build failed: {error}", code=code, hint=hint)
