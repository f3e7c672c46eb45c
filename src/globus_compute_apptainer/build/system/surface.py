"""Where the programs of a layer run and write, and how that becomes the layer.

Runs in the endpoint process. There are two ways, which make the same layer:

* an *overlay*: the base with the lower layers over it, and a private writable directory
  on top (fuse-overlayfs or the kernel's overlay, Apptainer decides)
* a *sandbox*: the base unpacked into a directory, and what is another file afterwards.
  Programs run at a file system's own speed, where fuse-overlayfs takes two to three
  times as long (``dpkg``, ``tests/bench/build``); but to unpack a base takes time and
  room, too, so that this is for small ones
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.processors import processors
from globus_compute_apptainer.build.system import changes, upper
from globus_compute_apptainer.build.system import sandbox as unpacking
from globus_compute_apptainer.build.system.plan import HOST_DEFINITION, KIT

if TYPE_CHECKING:
    from globus_compute_apptainer.build.apptainer import Completed
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.build.system.kit import Kit

MOST_UNPACKED: Final = 512 * 1024**2
"""Bytes of the files of a base that is unpacked; that takes about a second."""

PACKING: Final = ("-no-xattrs", "-exit-on-error")


class OverlayUnsuitableError(Exception):
    """This cannot be a layer, or not here; the text says why."""


@dataclass(frozen=True)
class Surface:
    """What programs run in.

    :param folder: where they write, a private directory
    :param image: for ``apptainer exec``, with :attr:`options`
    """

    job: Job
    below: Below
    laid: Kit
    folder: Path
    image: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--overlay", str(self.folder), *self.below.overlays)

    def seal(self, target: Path) -> None:
        """Pack what was written; see :mod:`.upper`.

        :raises OverlayUnsuitableError: a layer would show it wrongly
        """
        tree = self.folder / "upper"
        ours = upper.is_ours(tree)
        order = self._order(tree, target, ours=ours, below=_listings(self.below))
        if ours:
            argv = [sys.executable, "-I", "-S", "-B", str(upper.__file__), str(order)]
            environment = self.job.apptainer.environment()
            self.job.run(argv, env=environment, shown="mksquashfs")
        else:
            self.job.judge(
                as_root(self.job, self.laid, upper.__file__, order, "mksquashfs")
            )
        self._check()

    def _order(self, written: Path, target: Path, *, ours: bool, **more: Any) -> Path:
        pack = [squashfs.program(), str(written), str(target)]
        pack += [*squashfs.options(fast=True), *PACKING]
        return _told(
            self.laid,
            "seal",
            upper=str(written),
            drop=[KIT.lstrip("/")],
            answer=str(self._answer),
            pack=[*pack, *(["-all-root"] if ours else [])],
            **more,
        )

    @property
    def _answer(self) -> Path:
        return self.laid.folder / "answer.json"

    def _check(self) -> None:
        reason = json.loads(self._answer.read_text(encoding="utf-8"))["reason"]
        if reason:
            raise OverlayUnsuitableError(reason)


class Sandbox(Surface):
    """The base, unpacked; see :mod:`.sandbox` and :mod:`.changes`."""

    @property
    def options(self) -> tuple[str, ...]:
        return ("--writable",)

    def seal(self, target: Path) -> None:
        order = self._order(
            self.folder / "upper",
            target,
            ours=False,
            below=[],
            tree=str(self.image),
            before=str(_before(self.folder)),
            then=str(upper.__file__),
        )
        self.job.judge(
            as_root(self.job, self.laid, changes.__file__, order, "mksquashfs")
        )
        self._check()


def overlay(job: Job, below: Below, folder: Path, laid: Kit) -> Surface:
    """A writable overlay over the base and its layers."""
    return Surface(job, below, laid, folder, below.sif)


def sandbox(job: Job, below: Below, folder: Path, laid: Kit) -> Sandbox | None:
    """The base unpacked; None where that does not pay, or does not work here.

    :raises BuildError: the build was cancelled, or its time is up
    """
    place = _alone(below)
    if place is None:
        return None
    tree = folder / "base"
    order = _told(
        laid,
        "unpack",
        tree=str(tree),
        base=place,
        unsquashfs=squashfs.find("unsquashfs") or "unsquashfs",
        processors=processors(),
        most=MOST_UNPACKED,
        before=str(_before(folder)),
    )
    ended = as_root(job, laid, unpacking.__file__, order, "unsquashfs")
    if ended.ok and _before(folder).exists():
        return Sandbox(job, below, laid, folder, tree)
    if not ended.ok:
        job.transcript.note("the base cannot be unpacked here")
    return None


def as_root(
    job: Job, laid: Kit, program: str | None, order: Path, shown: str
) -> Completed:
    """Run one of our programs as root of a build's namespace: there, files that belong
    to this user's sub-ids can be read, and show the owner they have in the image.

    :param order: the program's one argument
    :param shown: how errors name it
    """
    definition = laid.folder / "host.def"
    definition.write_text(HOST_DEFINITION, encoding="utf-8")
    argv = job.apptainer.build_argv(
        definition, laid.folder / "nothing", options=["--sandbox", "--force"]
    )
    env = {
        **environment(job, laid),
        **programmed(program),
        "GC_APPTAINER_ORDER": str(order),
    }
    return job.attempt(argv, env=env, shown=shown, on_line=_Remarks(job).line)


@dataclass(frozen=True)
class _Remarks:
    """Passes on what our program says in a build of nothing, not what Apptainer says
    of that build: there is no stage in it."""

    job: Job

    def line(self, text: str) -> None:
        if not text.startswith(("INFO: ", "+ ")):
            self.job.transcript.line(text)


def programmed(path: str | None) -> dict[str, str]:
    """Variables by which a constant definition finds one of our programs."""
    return {
        "GC_APPTAINER_PYTHON": sys.executable,
        "GC_APPTAINER_PROGRAM": str(path),
    }


def environment(job: Job, laid: Kit) -> Mapping[str, str]:
    """For a call of Apptainer that works outside of the image."""
    place = str(laid.outside)
    extra = {**job.site.caller, "APPTAINER_TMPDIR": place, "TMPDIR": place}
    return {**job.apptainer.environment(), **extra}


def _told(laid: Kit, name: str, **order: Any) -> Path:
    path = laid.folder / f"{name}.json"
    path.write_text(json.dumps(order), encoding="utf-8")
    return path


def _before(folder: Path) -> Path:
    return folder / "before.json"


def _alone(below: Below) -> list[str] | None:
    """Where the base's file system is, for ``unsquashfs``, if nothing is over it."""
    try:
        found = sif.parts(below.sif)
        part = sif.system(found)
    except (sif.SifError, OSError):
        return None
    alone = not below.layers and not sif.overlays(found)
    if not alone or part.filesystem != sif.SQUASHFS or part.size > MOST_UNPACKED:
        return None
    return ["-o", str(part.offset), str(below.sif)]


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
