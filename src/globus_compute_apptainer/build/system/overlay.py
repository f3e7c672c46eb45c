"""Layers that programs make as root inside the image: Debian packages, and post.

Runs in the endpoint process. The programs run in the base with the lower layers over
it and a private writable directory on top (fuse-overlayfs or the kernel's overlay,
Apptainer decides); what they wrote there becomes the layer. Owners other than root
are kept where this user has sub-ids; else everything belongs to root.

Not everything that can be done to a file system can be told by a layer. Where it
cannot, and where this host has no such overlays, :class:`OverlayUnsuitableError`
says so, and the image must be flat.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.apptainer import ALONE
from globus_compute_apptainer.build.layer import layer_key, marker
from globus_compute_apptainer.build.layers import LAYER_FILE, kept_layer
from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system import kit, lists, upper
from globus_compute_apptainer.build.system.plan import KIT, SEAL_DEFINITION
from globus_compute_apptainer.errors import is_full

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.build.system.kit import Kit
    from globus_compute_apptainer.build.system.lists import Lists

ROOM_BYTES: Final = 1024**2

PACKING: Final = ("-no-xattrs", "-exit-on-error")


# What file systems refuse only because they are overlays: without the right extended
# attributes, the kernel's cannot remove a directory, or not move one.
_OVERLAY_FAULT: Final = re.compile(
    "Input/output error|Invalid cross-device link|Stale file handle"
)


class OverlayUnsuitableError(Exception):
    """This cannot be a layer, or not here; the text says why."""


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
    written = job.scratch / f"overlay-{kind}"
    written.mkdir()
    try:
        with kit.laid_out(
            job, kind, apt=apt, post=post, post_build=post_build, markers=markers
        ) as laid:
            had = kept.lay(laid.apt) if kept else {}
            _execute(job, below, written, laid)
            if kept:
                kept.keep(laid.apt, had)
            _seal(job, below, written, laid, workspace / LAYER_FILE)
            return laid.installed()
    finally:
        remove_tree(written)


def _execute(job: Job, below: Below, written: Path, laid: Kit) -> None:
    """Run ``stages.sh`` over the base; what it writes is in ``written``."""
    argv = job.apptainer.exec_argv(
        below.sif,
        ["/bin/sh", f"{KIT}/stages.sh"],
        binds=laid.binds,
        # As a build: the first overlay that is named lies on top.
        options=[
            *job.apptainer.build_flags,
            *ALONE,
            *("--overlay", str(written)),
            *below.overlays,
        ],
        cwd="/",
    )
    follower = kit.Follower(job)
    ended = job.attempt(
        argv,
        env=_environment(job, laid),
        shown="apptainer exec",
        on_line=follower.line,
    )
    if ended.ok:
        return
    _check_overlay(job, laid)
    raise kit.failure(job, laid, follower)


def _check_overlay(job: Job, laid: Kit) -> None:
    """:raises OverlayUnsuitableError: it was the overlay that did not work"""
    said = job.transcript.failure
    if said is not None and said.code == "overlay-unavailable":
        job.transcript.failure = None
        raise OverlayUnsuitableError(said.message)
    if said is None and not (laid.work / "before").exists():
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


def _seal(job: Job, below: Below, written: Path, laid: Kit, target: Path) -> None:
    """Pack what was written; see :mod:`.upper`.

    :raises OverlayUnsuitableError: a layer would show it wrongly
    """
    tree, answer = written / "upper", laid.folder / "answer.json"
    ours = upper.is_ours(tree)
    pack = [squashfs.program(), str(tree), str(target), *squashfs.options(fast=True)]
    order = {
        "upper": str(tree),
        "below": _listings(below),
        "drop": [KIT.lstrip("/")],
        "answer": str(answer),
        "pack": [*pack, *PACKING, *(["-all-root"] if ours else [])],
    }
    told = laid.folder / "order.json"
    told.write_text(json.dumps(order), encoding="utf-8")
    if ours:
        argv = [sys.executable, "-I", "-S", "-B", str(upper.__file__), str(told)]
        job.run(argv, env=job.apptainer.environment(), shown="mksquashfs")
    else:
        _seal_as_root(job, laid, told)
    reason = json.loads(answer.read_text(encoding="utf-8"))["reason"]
    if reason:
        raise OverlayUnsuitableError(reason)


def _seal_as_root(job: Job, laid: Kit, order: Path) -> None:
    """The same where files belong to this user's sub-ids."""
    definition = laid.folder / "seal.def"
    definition.write_text(SEAL_DEFINITION, encoding="utf-8")
    argv = job.apptainer.build_argv(
        definition, laid.folder / "nothing", options=["--sandbox"]
    )
    env = {
        **_environment(job, laid),
        **program(upper.__file__),
        "GC_APPTAINER_SEAL": str(order),
    }
    job.run(argv, env=env, shown="mksquashfs", on_line=_Remarks(job).line)


def _listings(below: Below) -> list[list[str]]:
    """Commands that list every file system that is laid over another."""
    try:
        found = sif.parts(below.sif)
        parts = [sif.system(found), *sif.overlays(found)]
    except sif.SifError as error:
        raise OverlayUnsuitableError(f"the base image is {error}") from None
    places = [["-o", str(part.offset), str(below.sif)] for part in parts]
    places += [[str(layer.file)] for layer in below.layers]
    program = squashfs.find("unsquashfs") or "unsquashfs"
    return [[program, "-l", *place] for place in places]


@dataclass(frozen=True)
class _Remarks:
    """Passes on what our program says in a build of nothing, not what Apptainer says
    of that build: there is no stage in it."""

    job: Job

    def line(self, text: str) -> None:
        if not text.startswith(("INFO: ", "+ ")):
            self.job.transcript.line(text)


def program(path: str | None) -> dict[str, str]:
    """Variables by which a constant definition finds one of our programs."""
    return {
        "GC_APPTAINER_PYTHON": sys.executable,
        "GC_APPTAINER_PROGRAM": str(path),
    }


def _environment(job: Job, laid: Kit) -> dict[str, str]:
    place = str(laid.outside)
    extra = {**job.site.caller, "APPTAINER_TMPDIR": place, "TMPDIR": place}
    return {**job.apptainer.environment(), **extra}
