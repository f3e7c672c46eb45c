"""Base images from files of this machine.

Runs in the endpoint process, in the thread of a build. A file is known by its
content: what is made of it stays as it is when the file changes, and a changed file
is another base. What was read is remembered by the file's size and times, so that an
unchanged one is read once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from globus_compute_apptainer.build.bases import pull
from globus_compute_apptainer.build.bases.layout import Layout, unpacked
from globus_compute_apptainer.build.bases.registry import Name, Resolved
from globus_compute_apptainer.build.bases.sources import Asked, Found, built
from globus_compute_apptainer.build.bases.tags import Known, file_key, sha256_of
from globus_compute_apptainer.build.layers import copy_file
from globus_compute_apptainer.build.scratch import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from globus_compute_apptainer.build.job import Job


def found(asked: Asked) -> Found:
    """A local file or directory as a base.

    :raises BuildError: it is not there, cannot be read (``base-not-found``), or is
        damaged
    """
    agent = asked.job.image.agent
    path, _, tag = asked.job.image.base_image.partition(":")
    try:
        if agent == "oci":
            return _layout(asked, Path(path), tag)
        return _file(asked, Path(path), tag)
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(path):
            raise
        raise asked.job.error(
            f"the base image {path} cannot be read: {error.strerror}",
            code="base-not-found",
            hint="check the path; it must be readable on the endpoint's machine",
        ) from error


def _file(asked: Asked, path: Path, tag: str) -> Found:
    """``localimage``, ``docker-archive`` and ``oci-archive``."""
    job, agent = asked.job, asked.job.image.agent
    digest = _digest(asked, path)
    if agent == "localimage":
        make = _copying(job, path, digest)
    elif agent == "docker-archive":
        make = _converting(job, path, digest)
    else:
        make = _unpacking(job, path, digest, tag)
    if tag:  # an archive may hold several images
        digest = f"sha256:{hashlib.sha256(f'{digest}:{tag}'.encode()).hexdigest()}"
    what = f"{agent}:{asked.job.image.base_image}"
    return Found(digest, "file", what, asked.now(), make)


def _digest(asked: Asked, path: Path) -> str:
    """SHA-256 of the file's content, remembered."""
    key = file_key(path, asked.now())
    known = asked.tags.read(*key) if key else None
    if known is None:
        known = Known(_sha256(asked.job, path), asked.now())
        if key and file_key(path, asked.now()) == key:
            asked.tags.write(known, *key)
    return known.digest


def _sha256(job: Job, path: Path) -> str:
    total = path.stat().st_size

    def check(done: int) -> None:
        job.check()
        job.transcript.progress(done, total, "bytes", path.name)

    return sha256_of(path, check)


def _copied(job: Job, path: Path, digest: str, target: Path) -> None:
    """A copy with this content.

    :raises BuildError: the file was changed meanwhile
    """
    copy_file(path, target, job.check)
    if _sha256(job, target) != digest:
        raise job.error(
            f"the base image {path} was changed while it was read",
            code="base-not-found",
            hint="submit again once it is complete",
        )


def _copying(job: Job, path: Path, digest: str) -> Callable[[Path], None]:
    return lambda target: _copied(job, path, digest, target)


def _converting(job: Job, path: Path, digest: str) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        copy = job.scratch / "base-archive.tar"
        try:
            _copied(job, path, digest, copy)
            built(job, f"docker-archive:{copy}", target)
        finally:
            copy.unlink(missing_ok=True)

    return make


def _unpacking(job: Job, path: Path, digest: str, tag: str) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        copy, folder = job.scratch / "base-archive.tar", job.scratch / "base-layout"
        try:
            _copied(job, path, digest, copy)
            layout = unpacked(job, copy, folder)
            from_layout(job, layout, layout.resolve(tag, job.machine), target)
        finally:
            copy.unlink(missing_ok=True)
            remove_tree(folder)

    return make


def _layout(asked: Asked, folder: Path, tag: str) -> Found:
    layout = Layout(asked.job, folder)
    resolved = layout.resolve(tag, asked.job.machine)
    return Found(
        digest=resolved.digest,
        kind="file",
        what=f"oci:{asked.job.image.base_image}",
        asked_at=asked.now(),
        make=lambda target: from_layout(asked.job, layout, resolved, target),
        index_digest=resolved.index_digest,
        layers=resolved.layers,
    )


def from_layout(job: Job, layout: Layout, found: Resolved, target: Path) -> None:
    """Write the SIF of an image in a layout.

    :raises BuildError: it is damaged, or cannot be unpacked
    """
    name = Name("", "local", found.digest)
    if pull.attempt(job, layout, name, found, target):
        return
    single = job.scratch / "base-single"
    try:
        layout.single(found, name, single)
        built(job, f"oci:{single}", target)
    finally:
        remove_tree(single)
