"""``gc-apptainer export IMAGE DIR``: an image for elsewhere, and what it is made of.

Runs in a person's shell. Writes ``image.sif``, ``image.def`` (an equivalent
definition file for plain Apptainer), ``lock.json`` (for ``build --locked``) and
``sbom.cdx.json``; each appears whole, in the place of an older one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.apptainer import run as run_program
from globus_compute_apptainer.build.layers import copy_file
from globus_compute_apptainer.build.record import lock, sbom
from globus_compute_apptainer.build.record.definition import definition
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.system.flatten import flatten, job_for
from globus_compute_apptainer.cli import inputs, output, stored
from globus_compute_apptainer.cli.build import obtain
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.errors import ContainerError, StoreError
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.manifest import Manifest

IMAGE, DEFINITION, LOCK, SBOM = "image.sif", "image.def", "lock.json", "sbom.cdx.json"


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    with Progress(verbose=options.verbose, quiet=options.json) as progress:
        image = _image(options.image, config, progress)
        texts = documents(image.manifest)
        folder = Path(options.folder)
        with _translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with stored.in_use(image, config), _new(folder / IMAGE) as target:
                if options.flat:
                    _write_flat(image, target, config, progress)
                else:
                    _write_layered(image, target, config)
            for name, text in texts.items():
                with _new(folder / name) as target:
                    target.write_text(text, encoding="utf-8")
    written = {name: str((folder / name).absolute()) for name in (IMAGE, *texts)}
    if options.json:
        output.data({"image_digest": image.manifest.image_digest, "files": written})
    else:
        for path in written.values():
            print(f"{path}  {output.size(Path(path).stat().st_size)}")
    return 0


def documents(manifest: Manifest) -> dict[str, str]:
    """File name → text of what is written beside the image.

    :raises BuildError: the image has no lock (``lock-invalid``)
    """
    whole = {**manifest.lock, "spec": dict(manifest.spec)}
    subject = sbom.Subject(
        name=manifest.name,
        digest=manifest.image_digest,
        created=manifest.created,
        os=manifest.os,
        packages=manifest.packages,
        lock=manifest.lock,
    )
    return {
        DEFINITION: definition(
            lock.from_document(_plain(whole)), manifest.image_digest
        ),
        LOCK: json.dumps(whole, indent=1, sort_keys=True) + "\n",
        SBOM: sbom.document(subject),
    }


def _plain(document: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(document))


def _image(argument: str, config: ContainersConfig, progress: Progress) -> StoredImage:
    """The image, built where it is not there and a spec says how."""
    try:
        return stored.find(argument, config)
    except ContainerError as error:
        digest = stored.named_by_digest(argument)
        if error.code != "image-not-built" or digest is not None:
            raise
    wanted = inputs.wanted(inputs.spec(argument, config), config)
    return obtain(wanted, config, progress).image


def _write_layered(image: StoredImage, target: Path, config: ContainersConfig) -> None:
    """The file as it is, with its bytecode in it."""
    copy_file(image.path, target, lambda: None)
    if image.bytecode is None:
        return
    apptainer = Apptainer.find(config.apptainer)
    machine = os.uname().machine
    argv = apptainer.add_overlay_argv(target, image.bytecode, machine)
    said: list[str] = []
    ended = run_program(
        argv,
        env=apptainer.environment(),
        timeout=config.build.timeout,
        on_line=said.append,
    )
    if not ended.ok:
        raise StoreError(
            f"the bytecode cannot be added to the image: {' '.join(said[-1:])}",
            path=str(target),
        )


def _write_flat(
    image: StoredImage, target: Path, config: ContainersConfig, sink: events.Sink
) -> None:
    manifest, build = image.manifest, config.build
    bytecode = [] if image.bytecode is None else [image.bytecode]
    log = Store(config.cache_dir).log_path(manifest.spec_digest)
    spec = ImageSpec(str(manifest.spec["base_image"]), str(manifest.spec["agent"]))
    with (
        private_scratch(build) as scratch,
        log.open("w", encoding="utf-8", errors="replace") as file,
    ):
        job = job_for(
            spec,
            Apptainer.find(config.apptainer),
            build,
            SiteAccess.from_host(os.environ, build),
            scratch=scratch,
            log=log,
            file=file,
            sink=sink,
            cancel=threading.Event(),
        )
        flatten(job, image.path, target, bytecode)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A file to be written, which takes the place of ``path`` when it is whole."""
    # Apptainer goes by the ending.
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    new.unlink(missing_ok=True)
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"it cannot be written to {folder}: {error.strerror or error}",
            hint="name another directory",
            code="export-failed",
            path=str(error.filename or folder),
        ) from None
