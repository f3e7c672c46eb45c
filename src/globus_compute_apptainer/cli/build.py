"""``gc-apptainer build SPEC``: the image of a spec, built unless it is there.

Runs in a person's shell, with the same service as an endpoint, on the same cache:
an image built here is a hit there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from typing import Any

from globus_compute_apptainer import events
from globus_compute_apptainer.cli import inputs, output
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Wanted
from globus_compute_apptainer.images import Ready, open_service


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    settings = inputs.settings(options.config, options.cache_dir)
    wanted = inputs.wanted(inputs.spec(options.spec, settings.config), settings.config)
    with Progress(verbose=options.verbose, quiet=options.json) as progress:
        ready = obtain(wanted, settings.config, progress)
    report = describe(ready)
    if options.json:
        output.data(report)
    else:
        print(f"{report['cache']}  {report['seconds']:.1f} s")
        print(f"image   {report['path']}")
        print(f"digest  {report['image_digest']}")
        print(f"spec    {report['spec_digest']}")
    return 0


def obtain(wanted: Wanted, config: ContainersConfig, sink: events.Sink) -> Ready:
    """The image, when it is ready; whatever ends the wait early stops the build.

    :raises ContainerError: why there is no image
    """

    service = open_service(config, os.environ, sink)
    with contextlib.closing(service):
        cached = service.cached(wanted.image.digest)
        return cached or service.request(wanted.image, name=wanted.name).result()


def describe(ready: Ready) -> dict[str, Any]:
    """The manifest, and how it was come by."""
    return {
        **dataclasses.asdict(ready.image.manifest),
        "path": str(ready.image.path),
        "cache": ready.cache,
        "seconds": round(ready.seconds, 3),
    }
