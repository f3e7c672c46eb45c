"""``gc-apptainer run-worker (--spec SPEC | --image IMAGE) -- COMMAND``: become COMMAND,
in an image.

Runs on a compute node, where a batch script would have started COMMAND: the stock
``GlobusComputeEngine`` with ``container_type: custom`` starts its worker pools with it,
and all tasks of such a pool run in the image. The image is taken from the cache, or
built. Then this process *becomes* Apptainer, so that signals and the exit code are
COMMAND's. Every error comes before that, on standard error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from globus_compute_apptainer.build.apptainer import bind
from globus_compute_apptainer.cli import inputs, stored
from globus_compute_apptainer.cli.build import obtain
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.order import container_order
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.images import Ready
from globus_compute_apptainer.spec.model import RunSpec
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.worker.environment import WorkerEnvironment
from globus_compute_apptainer.worker.launch import Launch, launch_program

WORKER: Final = "globus-compute-endpoint"
"""The program that a worker pool is started with, and the package that has it."""


def run(options: argparse.Namespace) -> int:
    """The verb; returns only by an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    with Progress(verbose=options.verbose, quiet=options.json) as progress:
        image, wanted = _image(options, config, progress)
    _check_worker(options.command, image.manifest.packages)
    # Held by this process's number, which stays the same in what it becomes.
    store = Store(config.cache_dir)
    if store.use(image) is None:
        raise stored.missing(f"the image {image.path} has just been removed")
    ready = Ready(image, "hit", image.manifest.build_seconds)
    order = container_order(ready, wanted, config)
    folder = str(Path.cwd())
    binds = [*options.bind, *([bind(folder)] if folder != "/" else [])]
    env = WorkerEnvironment([name for name, _ in order.env])(os.environ)
    become(launch_program(order, options.command, folder, binds, env))


def become(launch: Launch) -> NoReturn:
    """Go on as that program.

    :raises OSError: it is not there
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.execve(launch.argv[0], launch.argv, dict(launch.env))  # noqa: S606


def _image(
    options: argparse.Namespace, config: ContainersConfig, progress: Progress
) -> tuple[StoredImage, RunSpec]:
    """The image, and how to run it: of a stored one, nothing is known of that."""
    named = options.spec if options.spec is not None else options.image
    if options.spec is None and named not in config.images:
        return stored.find(named, config), RunSpec()
    wanted = inputs.wanted(inputs.spec(named, config), config)
    return obtain(wanted, config, progress).image, wanted.run


def _check_worker(command: Sequence[str], packages: Sequence[str]) -> None:
    """Say in words what a missing worker would say in Apptainer's.

    :raises SpecError: the image has none (``worker-missing``)
    """
    if command[0] != WORKER or any(one.startswith(f"{WORKER}==") for one in packages):
        return
    raise SpecError(
        f"the image has no {WORKER}, so that no worker can be started in it",
        hint=f"add `{WORKER}=={importlib.metadata.version(WORKER)}`, the endpoint's own"
        " version, to the spec's `pip`",
        code="worker-missing",
    )
