"""A closed world for environments: packages of the test's own, a shelf, a cache."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build import inventory
from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layer import Layer, place_marker
from globus_compute_apptainer.build.layers import Below, sif_with, squash
from globus_compute_apptainer.build.python.environment import python_layer
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.store.shelf import Shelf

DIST_PACKAGES = "usr/local/lib/python3.11/dist-packages"


@dataclass
class World:
    """A closed one: a directory of packages, a shelf, a package cache."""

    folder: Path
    make_job: Callable[..., Job]
    apptainer: Apptainer
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def links(self) -> Path:
        return self.folder / "links"

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    def job(self, name: str = "scratch", **changes: Any) -> Job:
        closed = {
            "PATH": os.environ["PATH"],
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.links),
            **self.environ,
        }
        closed = {name: value for name, value in closed.items() if value}
        config = BuildConfig(timeout=120.0, env=(("UV_HTTP_RETRIES", "0"),))
        site = SiteAccess.from_host(closed, config, prefix=self.folder)
        place = self.folder / name
        return self.make_job(config=config, site=site, scratch=place, **changes)

    def below(self, sif: Path, *layers: Layer) -> Below:
        bare = Below("sha256:" + "0" * 64, sif, None, layers)  # type: ignore[arg-type]
        found = inventory.take(self.job(), sif, bare.overlays)
        return Below(bare.base_digest, sif, found, layers)

    def files(self, name: str, fill: Callable[[Path], None]) -> Layer:
        """A layer with files of the test's own."""
        root = self.folder / f"files-{name}"
        root.mkdir()
        root.chmod(0o755)
        key = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        fill(root)
        place_marker(root, key)
        squash(self.job(), root, self.folder / f"{name}.sqfs")
        return Layer("conda", key, self.folder / f"{name}.sqfs")

    def base_with(self, sif: Path, *wheels: Path) -> Below:
        """``sif`` with wheels installed, as one SIF."""

        def fill(root: Path) -> None:
            for wheel in wheels:
                zipfile.ZipFile(wheel).extractall(root / DIST_PACKAGES)

        layer = self.files("base", fill)
        base = self.folder / "base.sif"
        sif_with(self.job(), sif, [layer], base)
        return self.below(base)

    def layer(self, below: Below, *requirements: str, **more: Any) -> Layer | None:
        shelf = Shelf(self.folder / "v2", "layers")
        job = more.pop("job", None) or self.job()
        try:
            return python_layer(job, below, requirements, shelf, self.packages, **more)
        finally:
            job.settle()

    def error(self, below: Below, *requirements: str, **more: Any) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.layer(below, *requirements, **more)
        assert caught.value.stage == "pip"
        return caught.value

    def inside(
        self, below: Below, layer: Layer, *command: str, over: Sequence[str] = ()
    ) -> list[str]:
        shown = Below(
            below.base_digest, below.sif, below.inventory, (*below.layers, layer)
        )
        lines: list[str] = []
        argv = self.apptainer.exec_argv(
            below.sif,
            command,
            options=[*shown.overlays, *over, "--containall"],
            cwd="/",
        )
        env = self.apptainer.environment()
        ended = run(argv, env=env, timeout=60, on_line=lines.append)
        assert ended.ok, lines
        return [line for line in lines if not line.startswith("INFO: ")]

    def python(self, below: Below, layer: Layer, program: str) -> list[str]:
        return self.inside(below, layer, "python3", "-c", program)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def names(layer: Layer | None) -> list[str]:
    assert layer is not None
    return [f"{one['name']}=={one['version']}" for one in layer.lock["packages"]]
