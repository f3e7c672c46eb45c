"""Layers that programs make as root inside the image: Debian packages, and post.

Runs in the endpoint process. Where the programs run, and how what they wrote becomes
the layer, is :mod:`.surface`'s. Owners other than root are kept where this user has
sub-ids; else everything belongs to root.

Not everything that can be done to a file system can be told by a layer. Where it
cannot, and where this host has no such overlays, :class:`OverlayUnsuitableError`
says so, and the image must be flat.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.apptainer import ALONE, Completed
from globus_compute_apptainer.build.layer import layer_key, marker
from globus_compute_apptainer.build.layers import LAYER_FILE, kept_layer
from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system import kit, lists, surface
from globus_compute_apptainer.build.system.plan import KIT
from globus_compute_apptainer.build.system.surface import (
    OverlayUnsuitableError,
    Surface,
)
from globus_compute_apptainer.errors import is_full

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.build.system.kit import Kit
    from globus_compute_apptainer.build.system.lists import Lists

ROOM_BYTES: Final = 1024**2

# What file systems refuse only because they are overlays: without the right extended
# attributes, the kernel's cannot remove a directory, or not move one.
_OVERLAY_FAULT: Final = re.compile(
    "Input/output error|Invalid cross-device link|Stale file handle"
)


def apt_layer(
    job: Job, below: Below, packages: Sequence[str], shelf: Keeper, cache: Path
) -> Layer:
    """A layer of Debian packages and what they depend on.

    Its lock names the packages that came or changed. ``build_env`` of the spec is
    set while they are installed.

    :param packages: ``name`` or ``name=version``
    :param cache: the endpoint's package cache, for apt's lists
    :raises BuildError: they cannot be installed
    :raises OverlayUnsuitableError: not as a layer
    """
    names = sorted(set(packages))
    key = layer_key(
        "apt", below=below.keys, packages=names, build_env=job.image.build_env
    )

    def make(workspace: Path) -> Mapping[str, Any]:
        kept = lists.kept_lists(job, below, cache)
        installed = _run(job, below, workspace, "apt", key, apt=names, kept=kept)
        return {"requested": names, **installed}

    return kept_layer(job, shelf, "apt", key, make)


def post_layer(
    job: Job,
    below: Below,
    post: Sequence[str],
    shelf: Keeper,
    *,
    post_build: bool = False,
) -> Layer:
    """A layer of what the end of the build does: ``postBuild``, then ``post``.

    ``build_env`` of the spec is set for both.

    :param post: lines of a shell script, run in ``/``; it ends at the first command
        that fails
    :param post_build: whether the payload's ``postBuild`` is run before, in
        ``/payload``; which one it is, the payload's layer below says
    :raises BuildError: they fail
    :raises OverlayUnsuitableError: not as a layer
    """
    key = layer_key(
        "post",
        below=below.keys,
        post=list(post),
        post_build=post_build,
        build_env=job.image.build_env,
    )

    def make(workspace: Path) -> Mapping[str, Any]:
        installed = _run(
            job, below, workspace, "post", key, post=post, post_build=post_build
        )
        return {"post": list(post), "post_build": post_build, **installed}

    return kept_layer(job, shelf, "post", key, make)


def _run(
    job: Job,
    below: Below,
    workspace: Path,
    kind: str,
    key: str,
    *,
    apt: Sequence[str] = (),
    post: Sequence[str] = (),
    post_build: bool = False,
    kept: Lists | None = None,
) -> Mapping[str, Any]:
    """Make the layer file in ``workspace``; returns what packages it brings."""
    markers = (marker(key), [layer.marker for layer in below.layers])
    folder = job.scratch / f"overlay-{kind}"
    folder.mkdir()
    try:
        with kit.laid_out(
            job, kind, apt=apt, post=post, post_build=post_build, markers=markers
        ) as laid:
            had = kept.lay(laid.apt) if kept else {}
            # Programs of Debian packages write a lot, those of post who knows.
            used = _in_sandbox(job, below, folder, laid) if apt else None
            used = used or _in_overlay(job, below, folder, laid)
            if kept:
                kept.keep(laid.apt, had)
            used.seal(workspace / LAYER_FILE)
            return laid.installed()
    finally:
        remove_tree(folder)


def _in_sandbox(job: Job, below: Below, folder: Path, laid: Kit) -> Surface | None:
    """Run ``stages.sh`` in the unpacked base; None where there is no such thing.

    :raises BuildError: a program fails
    """
    used = surface.sandbox(job, below, folder, laid)
    if used is None:
        return None
    ended, follower = _execute(job, used, laid)
    if ended.ok:
        return used
    if not _has_begun(laid):
        job.transcript.failure = None
        job.transcript.note("a directory does not start as a container here")
        return None
    raise kit.failure(job, laid, follower)


def _in_overlay(job: Job, below: Below, folder: Path, laid: Kit) -> Surface:
    """Run ``stages.sh`` in an overlay.

    :raises BuildError: a program fails
    :raises OverlayUnsuitableError: the overlay does
    """
    used = surface.overlay(job, below, folder, laid)
    ended, follower = _execute(job, used, laid)
    if ended.ok:
        return used
    _check_overlay(job, laid)
    raise kit.failure(job, laid, follower)


def _execute(job: Job, used: Surface, laid: Kit) -> tuple[Completed, kit.Follower]:
    argv = job.apptainer.exec_argv(
        used.image,
        ["/bin/sh", f"{KIT}/stages.sh"],
        binds=laid.binds,
        options=[*job.apptainer.build_flags, *ALONE, *used.options],
        cwd="/",
    )
    follower = kit.Follower(job)
    ended = job.attempt(
        argv,
        env=surface.environment(job, laid),
        shown="apptainer exec",
        on_line=follower.line,
    )
    return ended, follower


def _has_begun(laid: Kit) -> bool:
    return (laid.work / "before").exists()


def _check_overlay(job: Job, laid: Kit) -> None:
    """:raises OverlayUnsuitableError: it was the overlay that did not work"""
    said = job.transcript.failure
    if said is not None and said.code == "overlay-unavailable":
        job.transcript.failure = None
        raise OverlayUnsuitableError(said.message)
    if said is None and not _has_begun(laid):
        last = next(iter(reversed(job.transcript.tail)), "nothing was said")
        raise OverlayUnsuitableError(
            "a container that can be written to does not start here: "
            + re.sub(r"^[A-Z]+:\s+", "", last)
        )
    strange = next(filter(_OVERLAY_FAULT.search, job.transcript.tail), None)
    if strange is not None:
        _check_room(job)
        raise OverlayUnsuitableError(f"not possible in an overlay here: {strange}")


def _check_room(job: Job) -> None:
    """A quota that is used up is an "Input/output error" to who writes through FUSE.

    :raises BuildError: that is so (``disk-full``)
    """
    probe = job.scratch / "room"
    try:
        with probe.open("wb") as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if is_full(error):
            raise job.error(
                f"there is no room where images are built: {error.strerror}",
                code="disk-full",
            ) from error
    finally:
        probe.unlink(missing_ok=True)
