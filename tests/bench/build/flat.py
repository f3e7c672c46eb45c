"""(b): a definition file and ``apptainer build``, tuned by hand as far as that goes.

The base is a local file packed with zstd, so nothing is fetched or converted; the
build works in memory; packing is zstd at level 3; packages are installed by uv, its
cache warm; bytecode is compiled by uv on all cores, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import uv

from bench.build.spent import Spent, Watch
from bench.build.stage import CA_INSIDE, ZSTD, Stage, call

DEFINITION = """\
Bootstrap: localimage
From: {base}

%setup
    mkdir -p "$APPTAINER_ROOTFS/bench/cache"
    touch "$APPTAINER_ROOTFS/bench/uv"

%post
    set -e
{lines}
"""
APT = """\
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install --no-install-recommends -y -qq {packages}
    apt-get clean
    rm -rf /var/lib/apt/lists/*
"""
PIP = """\
    export UV_CACHE_DIR=/bench/cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
    export SSL_CERT_FILE={certificates} UV_DEFAULT_INDEX={index}
    /bench/uv pip install --quiet --python /usr/bin/python3 --break-system-packages \\
        {options} {packages}
"""
PYPI = "https://pypi.org/simple"


class Flat:
    """Flat builds with one uv cache."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._folder = stage.folder / "flat"
        self._cache = self._folder / "cache"

    def build(
        self,
        base: str,
        *,
        pip: Sequence[str] = (),
        apt: Sequence[str] = (),
        bytecode: bool = True,
        cold: bool = False,
    ) -> tuple[Spent, Path]:
        """Build an image.

        :param cold: with an empty uv cache
        :returns: what it took, and the image
        """
        sif = self._stage.base_sif(base)
        cache = self._folder / "cold" if cold else self._cache
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        image = self._folder / "image.sif"
        definition = self._folder / "image.def"
        definition.write_text(
            DEFINITION.format(base=sif, lines=self._lines(pip, apt, bytecode))
        )
        apptainer = self._stage.apptainer
        argv = apptainer.build_argv(
            definition,
            image,
            binds=[f"{cache}:/bench/cache", f"{uv.find_uv_bin()}:/bench/uv"],
            options=["--force", *ZSTD],
        )
        with self._stage.scratch() as scratch:
            env = self._stage.environment(
                APPTAINER_TMPDIR=str(scratch), TMPDIR=str(scratch)
            )
            watch = Watch()
            call(argv, env=env)
            return watch.read(), image

    def _lines(self, pip: Sequence[str], apt: Sequence[str], bytecode: bool) -> str:
        lines = ""
        if apt:
            lines += APT.format(packages=" ".join(apt))
        if pip:
            lines += PIP.format(
                certificates=CA_INSIDE if self._stage.site.ca_bundle else "",
                index=self._stage.site.variables.get("UV_DEFAULT_INDEX") or PYPI,
                options="--compile-bytecode" if bytecode else "",
                packages=" ".join(pip),
            )
        return lines
