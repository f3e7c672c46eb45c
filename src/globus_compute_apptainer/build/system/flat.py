"""The flat way: one ``apptainer build`` from the base and its layers.

Runs in the endpoint process. Works for every base and spec, and on hosts without
overlays; unpacks and packs the whole image every time. In a flat image, layers are
what they are in a layered one: they are laid into the unpacked base by their names,
before ``apt`` and ``post`` run in it as they would over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.system import kit, unpack
from globus_compute_apptainer.build.system.plan import FLAT_DEFINITION
from globus_compute_apptainer.build.system.surface import programmed

if TYPE_CHECKING:
    from globus_compute_apptainer.build.apptainer import Apptainer
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.layer import Layer
    from globus_compute_apptainer.build.system.kit import Kit

PACKING_SINCE: Final = (1, 4)
"""The first Apptainer that lets its caller choose how to pack."""


def build_flat(
    job: Job,
    base: Path,
    layers: Sequence[Layer],
    target: Path,
    *,
    apt: Sequence[str] = (),
    post: Sequence[str] = (),
    post_build: bool = False,
) -> Mapping[str, Any]:
    """Write ``target``, one plain SIF; without ``apt`` and ``post``, a flattened image.

    :param layers: laid into the base, lowest first, before anything runs
    :param post_build: whether the payload's ``postBuild`` is run before ``post``
    :returns: the lock of ``apt``: as that of :func:`~.overlay.apt_layer`
    :raises BuildError: it fails; nothing is left
    """
    with kit.laid_out(job, "flat", apt=apt, post=post, post_build=post_build) as laid:
        job.enter("apt" if apt else "post" if post or post_build else "pack")
        try:
            _build(job, laid, base, layers, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return {"requested": sorted(set(apt)), **laid.installed()}


def _build(
    job: Job, laid: Kit, base: Path, layers: Sequence[Layer], target: Path
) -> None:
    folder = laid.folder
    (folder / "base.sif").symlink_to(base.absolute())
    (folder / "flat.def").write_text(FLAT_DEFINITION, encoding="utf-8")
    # Apptainer takes only the base's own partition; others of ours may be over it.
    over = [(base, part.offset) for part in _overlays(job, base)]
    over += [(layer.file, 0) for layer in layers]
    listing = [[str(file.absolute()), offset] for file, offset in over]
    (folder / "layers.json").write_text(json.dumps(listing), encoding="utf-8")
    argv = job.apptainer.build_argv(
        folder / "flat.def",
        target.absolute(),
        binds=laid.binds,
        options=packing(job.apptainer),
    )
    env = {
        **job.apptainer.environment(),
        **job.site.caller,
        **programmed(unpack.__file__),
        "GC_APPTAINER_LAYERS": str(folder / "layers.json"),
        "APPTAINER_TMPDIR": str(laid.outside),
        "TMPDIR": str(laid.outside),
    }
    follower = kit.Follower(job)
    ended = job.attempt(
        argv, env=env, cwd=folder, shown="apptainer build", on_line=follower.line
    )
    if not ended.ok:
        raise kit.failure(job, laid, follower)


def _overlays(job: Job, base: Path) -> list[sif.Part]:
    try:
        return sif.overlays(sif.parts(base))
    except sif.SifError as error:
        raise job.error(f"the base image cannot be unpacked: it is {error}") from None


def packing(apptainer: Apptainer) -> list[str]:
    """Options for how to pack; none where that cannot be chosen."""
    if apptainer.release < PACKING_SINCE or not squashfs.has_zstd():
        return []
    return ["--mksquashfs-args", " ".join([*squashfs.ZSTD, *squashfs.limits()])]
