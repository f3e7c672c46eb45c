"""The conda layer: packages solved and installed from outside of the image.

Runs in the endpoint process. The solver and installer (py-rattler) runs in a child
process on the host, see :mod:`.child`: so a base image needs neither conda nor
Python nor a network, and the package cache is never visible to code of the user's. A
conda or mamba that the base may have is not used: it would run with the base's own
configuration and write into the base's own prefix, which layers must not.

The prefix is at ``/.gc-apptainer/conda`` in the image, and the installer writes that
path into the files, wherever they lie meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.conda import activation
from globus_compute_apptainer.build.conda.channels import Channels
from globus_compute_apptainer.build.conda.solver import ask
from globus_compute_apptainer.build.layer import (
    HOME,
    Layer,
    layer_key,
    place_marker,
)
from globus_compute_apptainer.build.layers import LAYER_FILE, kept_layer, squash

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Inventory
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.spec.conda import Conda

SUBDIRS: Final[Mapping[str, str]] = {
    "x86_64": "linux-64",
    "aarch64": "linux-aarch64",
    "ppc64le": "linux-ppc64le",
    "riscv64": "linux-riscv64",
    "s390x": "linux-s390x",
}
"""Conda's names of machines, by ``uname -m``."""

_OVERRIDE: Final = re.compile(r"CONDA_OVERRIDE_(CUDA|GLIBC|LINUX|ARCHSPEC)\Z")


@dataclass(frozen=True)
class _Target:
    """What packages are chosen for: the image, not this machine.

    :param prefix: of the environment, in the image
    :param virtual: ``(name, version, build)`` of conda's virtual packages
    """

    subdir: str
    prefix: str
    virtual: tuple[tuple[str, str, str], ...]


def conda_layer(
    job: Job,
    below: Below,
    conda: Conda,
    shelf: Keeper,
    packages: Path,
    *,
    python: str | None = None,
    locked: Sequence[Mapping[str, Any]] | None = None,
) -> Layer:
    """The conda environment, as a layer.

    Its key holds the solved list, the prefix and the base, in which the environment is
    activated once; layers between them do not enter.

    :param packages: where downloads are kept; what is in it is shared by builds
    :param python: the minor version that the image is to have, where it is not the
        spec's (``job.image.python``): Python is that one if it comes along at all
    :param locked: packages of an earlier lock (its ``packages``): these are installed,
        and nothing is solved
    :raises BuildError: see ``docs/reference/errors.md``
    """
    job.enter("conda")
    target = _target(job, below.inventory)
    cache = packages / "rattler"
    if locked is None:
        channels = Channels.wanted(conda, job.config)
        wanted = python or job.image.python
        chosen = _solved(job, conda, channels, target, cache, wanted)
    else:
        chosen = [dict(package) for package in locked]
        channels = Channels.locked(chosen, job.config)
    key = _key(below, conda, target, chosen)

    def make(workspace: Path) -> Mapping[str, Any]:
        root = Path(tempfile.mkdtemp(prefix="conda-", dir=job.scratch))
        tree = root / target.prefix.lstrip("/")
        solver = _install(
            job, chosen, channels, target, tree, cache, locked is not None
        )
        _clean(tree, channels)
        _note_link_scripts(job, tree)
        activation.write(job, below, root, target.prefix, conda.variables)
        place_marker(root, key)
        _open(root)
        squash(job, root, workspace / LAYER_FILE)
        shutil.rmtree(root, ignore_errors=True)
        return {
            "packages": chosen,
            "channels": list(channels.urls),
            "virtual_packages": {n: f"{v}={b}" for n, v, b in target.virtual},
            "solver": solver,
        }

    return kept_layer(job, shelf, "conda", key, make)


def _key(
    below: Below, conda: Conda, target: _Target, chosen: Sequence[Mapping[str, Any]]
) -> str:
    return layer_key(
        "conda",
        base=below.base_digest,
        prefix=target.prefix,
        packages=[[p["url"], p.get("sha256"), p.get("md5")] for p in chosen],
        variables=conda.variables,
    )


def _target(job: Job, inventory: Inventory) -> _Target:
    """Of the image: its machine and libc, and a prefix that it does not have yet.

    :raises BuildError: conda has no packages for it (``no-glibc``)
    """
    subdir = SUBDIRS.get(inventory.machine)
    if inventory.libc != "glibc" or subdir is None:
        has = inventory.libc or "no libc that is known"
        raise job.error(
            f"conda packages need glibc on one of {', '.join(SUBDIRS)}; the base image "
            f"has {has} on {inventory.machine}",
            code="no-glibc",
        )
    number = 1
    while (name := "conda" if number == 1 else f"conda{number}") in inventory.ours:
        number += 1
    told = {**dict(job.site.variables), **dict(job.image.build_env)}
    return _Target(subdir, f"{HOME}/{name}", _virtual(inventory, told))


def _virtual(
    inventory: Inventory, variables: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Virtual packages of the image; ``CONDA_OVERRIDE_X`` of the build has the last
    word, as with conda. The processor is the plainest one, since an image may run on
    another node than this, and there is no ``__cuda`` unless it is said so."""
    release = re.match(r"\d+(\.\d+)*", platform.release())
    found = {
        "__unix": ("0", "0"),
        "__linux": (release[0] if release else "0", "0"),
        "__glibc": (inventory.libc_version, "0"),
        "__archspec": ("1", inventory.machine),
    }
    for name, value in variables.items():
        if (override := _OVERRIDE.match(name)) and value:
            word = f"__{override[1].lower()}"
            found[word] = ("1", value) if word == "__archspec" else (value, "0")
    return tuple((name, version, build) for name, (version, build) in found.items())


def _solved(
    job: Job,
    conda: Conda,
    channels: Channels,
    target: _Target,
    cache: Path,
    python: str | None,
) -> list[dict[str, Any]]:
    """The packages to install, by name, as the lock holds them."""
    request = {
        "action": "solve",
        "channels": [channels.here(url) for url in channels.urls],
        "specs": [channels.spec(spec) for spec in conda.specs],
        "constraints": [f"python {python}.*"] if python else [],
        "virtual_packages": target.virtual,
        "subdir": target.subdir,
        "repodata": str(cache / "repodata"),
        "fresh": job.fresh,
        "timeout": max(1.0, job.left()),
    }
    answer = ask(job, request, channels, "rattler solve")
    for note in answer["notes"]:
        job.transcript.note(channels.told(note))
    chosen = [
        {
            **package,
            "url": channels.public(package["url"]),
            "channel": channels.public(package["channel"]),
        }
        for package in answer["packages"]
    ]
    job.transcript.note(f"{len(chosen)} conda packages are needed")
    return sorted(chosen, key=lambda package: str(package["name"]))


def _install(
    job: Job,
    chosen: Sequence[Mapping[str, Any]],
    channels: Channels,
    target: _Target,
    tree: Path,
    cache: Path,
    locked: bool,
) -> str:
    """Put the packages into ``tree``; returns the installer's name and version."""
    request = {
        "action": "install",
        "channels": [channels.here(url) for url in channels.urls],
        "packages": [
            {
                **package,
                "url": channels.here(package["url"]),
                "channel": channels.here(package["channel"]),
            }
            for package in chosen
        ],
        "subdir": target.subdir,
        "prefix": str(tree),
        "inside": target.prefix,
        "cache": str(cache / "packages"),
    }
    tree.mkdir(parents=True)
    answer = ask(job, request, channels, "rattler install", locked=locked)
    return f"rattler {answer['rattler']}"


def _clean(tree: Path, channels: Channels) -> None:
    """Take this machine's paths and mirrors out of what the installer noted down."""
    for path in activation.own_files(tree, "conda-meta", "*.json"):
        try:
            told = json.loads(path.read_bytes())
        except ValueError:
            continue  # a package brought it
        if not isinstance(told, dict):
            continue
        for name in ("extracted_package_dir", "package_tarball_full_path", "link"):
            told.pop(name, None)
        for name in ("url", "channel"):
            told[name] = channels.public(str(told.get(name, "")))
        path.unlink()
        path.write_text(json.dumps(told, indent=1), encoding="utf-8")


def _note_link_scripts(job: Job, tree: Path) -> None:
    for path in sorted((tree / "bin").glob(".*-post-link.sh")):
        name = path.name.removesuffix("-post-link.sh").lstrip(".")
        job.transcript.note(
            f"{name} has a post-link script, which is not run; if the package needs "
            "it, run it in `post`"
        )


def _open(root: Path) -> None:
    """Directories above the prefix, and the prefix itself, are for everybody."""
    for folder, names, _ in os.walk(root):
        Path(folder).chmod(0o755)
        if "conda-meta" in names:
            names.clear()
