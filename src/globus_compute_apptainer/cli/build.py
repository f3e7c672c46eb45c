"""``gc-apptainer build SPEC``: the image of a spec, built unless it is there.

Runs in a person's shell, with the same service as an endpoint, on the same cache:
an image built here is a hit there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from globus_compute_apptainer import events
from globus_compute_apptainer.build.record import lock
from globus_compute_apptainer.build.record.lock import Lock
from globus_compute_apptainer.cli import inputs, origins, output
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.client.outcome import text_of
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Wanted
from globus_compute_apptainer.errors import BuildError, SpecError
from globus_compute_apptainer.images import ImageService, Ready, open_service, outcome


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    locked = None
    if options.locked is not None:
        origins.refuse_choices(_choices(options), "--locked")
        locked, wanted = _locked(Path(options.locked), config)
    else:
        wanted = inputs.wanted(_spec(options, config), config)
    with Progress(verbose=options.verbose, quiet=options.json) as progress:
        ready = obtain(wanted, config, progress, fresh=options.fresh, locked=locked)
    _show(describe(ready), as_json=options.json)
    return 0


def obtain(
    wanted: Wanted,
    config: ContainersConfig,
    sink: events.Sink,
    *,
    fresh: bool = False,
    locked: Lock | None = None,
) -> Ready:
    """The image, when it is ready and complete; whatever ends the wait early stops
    the build.

    :param fresh: it is made anew, with all resolved anew
    :param locked: it is made anew, exactly so
    :raises ContainerError: why there is no image
    """
    service = open_service(config, os.environ, sink)
    with contextlib.closing(service):
        ready = _obtained(service, wanted, fresh=fresh, locked=locked)
        if isinstance(sink, Progress) and ready.cache == "built":
            sink.waiting("Python's bytecode is compiled", tell=True)
        service.settle()
        return ready


def wanted_by(locked: Lock, config: ContainersConfig) -> Wanted:
    """The image that a lock is of: valid and allowed here, as if it were asked for.

    :raises BuildError: the lock does not say, or means another image here
    :raises SpecError: or PolicyError, as for a task
    """
    if not locked.spec:
        raise lock.invalid("it does not say what was asked for (its `spec`)")
    wanted = inputs.wanted(locked.request, config)
    if json.loads(wanted.image.canonical()) != locked.spec:
        raise lock.invalid("its `spec` is not one that this version writes")
    return wanted


def describe(ready: Ready) -> dict[str, Any]:
    """The manifest, and how it was come by."""
    return {
        **dataclasses.asdict(ready.image.manifest),
        "path": str(ready.image.path),
        "cache": ready.cache,
        "seconds": round(ready.seconds, 3),
    }


def _locked(path: Path, config: ContainersConfig) -> tuple[Lock, Wanted]:
    try:
        locked = lock.parse(text_of(path))
        return locked, wanted_by(locked, config)
    except BuildError as error:  # nothing was built yet
        raise SpecError(error.message, hint=error.hint, code=error.code) from None


def _spec(options: argparse.Namespace, config: ContainersConfig) -> object:
    choices = _choices(options)
    if options.origin is not None:
        return origins.spec(Path(options.origin), choices)
    return inputs.spec(options.spec, config, choices)


def _choices(options: argparse.Namespace) -> origins.Choices:
    return origins.Choices(
        options.python,
        tuple(options.extra),
        tuple(options.group),
        tuple(options.skip),
    )


def _obtained(
    service: ImageService, wanted: Wanted, *, fresh: bool, locked: Lock | None
) -> Ready:
    digest, max_age = wanted.image.digest, wanted.max_age
    if not fresh and locked is None:
        cached = service.cached(digest, max_age=max_age)
        if cached is not None:
            return cached
    future = service.request(
        wanted.image,
        name=wanted.name,
        policy=wanted.policy,
        max_age=max_age,
        fresh=fresh,
        locked=locked,
    )
    ready = outcome(future)
    manifest = ready.image.manifest
    # Another process may have made it meanwhile, without the lock.
    if locked and (lines := lock.differences(locked, manifest.lock)):
        raise lock.unmet(lines, manifest.log)
    return ready


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.data(report)
        return
    print(f"{report['cache']}  {report['seconds']:.1f} s")
    print(f"image   {report['path']}")
    print(f"digest  {report['image_digest']}")
    print(f"spec    {report['spec_digest']}")
    if report["reason"]:
        print(f"flat    {report['reason']}")
