"""The flat way: one ``apptainer build`` from a generated definition file.

Runs in the endpoint process. Works for every base and spec; pulls and packs the
whole base every time.

What runs in a build is the base's and the user's code, as this user. It can write
to the image and to this build's own scratch directory, so uv's cache lives there and
is never shared between builds: a shared one could be poisoned for later images.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import Apptainer, Completed, bind, run
from globus_compute_apptainer.build.plan import KIT
from globus_compute_apptainer.build.scratch import remove_tree

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from globus_compute_apptainer.build.plan import Recipe
    from globus_compute_apptainer.build.site import SiteAccess

IMAGE_NAME: Final = "image.sif"
PACKING: Final = "-comp zstd -Xcompression-level 3"
"""Packs as small as gzip and seven times as fast; zstd's own default is slow."""

PACKING_SINCE: Final = (1, 4)
"""The first Apptainer that lets its caller choose how to pack."""

_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def build_flat(
    apptainer: Apptainer,
    recipe: Recipe,
    site: SiteAccess,
    scratch: Path,
    *,
    http: bool,
    timeout: float,
    on_line: Callable[[str], None],
    cancel: threading.Event | None = None,
) -> Completed:
    """Build ``scratch/image.sif``; what else was in ``scratch`` is removed.

    :param http: whether the base's registry is spoken to without TLS
    :param timeout: seconds
    """
    binds = lay_out(recipe, site, scratch)
    definition = scratch / "image.def"
    definition.write_text(recipe.definition, encoding="utf-8")
    options = ["--no-https"] if http else []
    options += packing(apptainer)
    work = scratch / "tmp"
    work.mkdir()
    argv = apptainer.build_argv(
        definition, scratch / IMAGE_NAME, binds=binds, options=options
    )
    extra = {**site.caller, "APPTAINER_TMPDIR": str(work), "TMPDIR": str(work)}
    try:
        return run(
            argv,
            env={**apptainer.environment(), **extra},
            cwd=scratch,
            timeout=timeout,
            on_line=on_line,
            cancel=cancel,
        )
    finally:
        for leftover in (work, scratch / "kit", scratch / "work"):
            remove_tree(leftover)


def lay_out(recipe: Recipe, site: SiteAccess, scratch: Path) -> list[str]:
    """Write what the build reads; returns the binds that show it.

    The kit is one directory, mounted read-only at :data:`~.plan.KIT`, with empty
    files and directories where the rest is mounted on.
    """
    kit, work = scratch / "kit", scratch / "work"
    for folder in (kit / "work", work / "tmp"):
        folder.mkdir(parents=True)
    for name, text in {**recipe.files, **_site_files(site)}.items():
        (kit / name).write_text(text, encoding="utf-8")
    program = resources.files(__package__).joinpath("stages.sh").read_bytes()
    (kit / "stages.sh").write_bytes(program)
    binds = [bind(kit, KIT, read_only=True), bind(work, f"{KIT}/work")]
    for number, folder in enumerate(site.folders):
        (kit / "site" / str(number)).mkdir(parents=True)
        binds.append(bind(folder, f"{KIT}/site/{number}", read_only=True))
    files = {"ca.crt": site.ca_bundle, "uv.toml": site.uv_config, "uv": _uv()}
    for name, path in files.items():
        if path is not None:
            (kit / name).touch()
            binds.append(bind(path, f"{KIT}/{name}", read_only=True))
    return binds


def needs_http(agent: str, base: str, http_registries: Sequence[str]) -> bool:
    """Whether the base comes from a registry that is configured as without TLS."""
    return agent in {"docker", "oras"} and base.split("/", 1)[0] in http_registries


def packing(apptainer: Apptainer) -> list[str]:
    """Options for how to pack; none where that cannot be chosen."""
    if apptainer.release < PACKING_SINCE or not can_pack_zstd():
        return []
    return ["--mksquashfs-args", PACKING]


def can_pack_zstd() -> bool:
    """Whether this machine's ``mksquashfs`` knows zstd."""
    program = shutil.which("mksquashfs") or shutil.which("mksquashfs", path=_SBIN)
    if program is None:
        return False
    try:
        said = subprocess.run(
            [program, "-help"], capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rb"^\s+zstd", said.stdout + said.stderr, re.MULTILINE) is not None


def _site_files(site: SiteAccess) -> dict[str, str]:
    variables = "".join(f"{name}={value}\n" for name, value in site.variables.items())
    return {"site.env": variables, "apt.conf": site.apt_conf()}


def _uv() -> Path | None:
    """This environment's uv; the build falls back to pip without it."""
    try:
        import uv  # noqa: PLC0415 - part of the endpoint extra only

        return Path(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return None
