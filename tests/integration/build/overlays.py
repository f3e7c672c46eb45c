"""Layers made by real programs in a real image, and images made of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from globus_compute_apptainer.build.apptainer import run
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layer import Layer, place_marker
from globus_compute_apptainer.build.layers import Below, sif_with
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.system.overlay import apt_layer, post_layer
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf

MakeJob = Callable[..., Job]
INVENTORY = Inventory("", "debian", "glibc", "2.36", "x86_64", "/bin", has_bash=True)


class Stack:
    """A base with layers, and images made of it."""

    def __init__(self, make_job: MakeJob, base: Path, folder: Path) -> None:
        self.make_job, self.folder = make_job, folder
        self.shelf = Shelf(folder / "v2", "layers")
        self.cache = folder / "packages"
        self.below = Below("sha256:" + "0" * 64, base, INVENTORY)
        self.job = make_job()

    def apt(self, *packages: str) -> Layer:
        self.job.enter("apt")
        return self._lay(
            apt_layer(self.job, self.below, packages, self.shelf, self.cache)
        )

    def post(self, *lines: str, post_build: bool = False) -> Layer:
        self.job.enter("post")
        return self._lay(
            post_layer(self.job, self.below, lines, self.shelf, post_build=post_build)
        )

    def payload(self, **files: str) -> Layer:
        """A layer with these files in ``/payload``; ``__`` in names is ``/``."""
        key = "sha256:" + "f" * 64
        tree, packed = self.folder / "payload", self.folder / "payload.sqfs"
        place_marker(tree, key)
        for name, text in files.items():
            path = tree / "payload" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        argv = ["mksquashfs", tree, packed, "-all-root", "-quiet"]
        subprocess.run(argv, check=True, timeout=60)
        return self._lay(Layer("payload", key, packed))

    def with_environment(self, **build_env: str) -> None:
        image = ImageSpec("x", "docker", build_env=tuple(build_env.items()))
        self.job = self.make_job(image)

    def _lay(self, layer: Layer) -> Layer:
        self.below = replace(self.below, layers=(*self.below.layers, layer))
        return layer

    def image(self) -> Path:
        target = self.folder / "image.sif"
        target.unlink(missing_ok=True)
        sif_with(self.job, self.below.sif, self.below.layers, target)
        return target

    def inside(
        self, script: str, image: Path | None = None, options: Sequence[str] = ()
    ) -> list[str]:
        """Lines that a shell script prints in the image."""
        lines: list[str] = []
        apptainer = self.job.apptainer
        argv = apptainer.exec_argv(
            image or self.image(),
            ["/bin/sh", "-euc", script],
            options=["--no-home", "--no-mount", "cwd,tmp", *options],
            cwd="/",
        )
        env = apptainer.environment()
        ended = run(argv, env=env, timeout=60, on_line=lines.append)
        assert ended.ok, lines
        return [line for line in lines if not line.startswith(("INFO: ", "WARNING: "))]

    def clean(self) -> bool:
        """Whether nothing is left of what was made."""
        tmp = self.folder / "v2/tmp"
        left = [*self.job.scratch.iterdir(), *(tmp.iterdir() if tmp.exists() else ())]
        return left == []


@contextmanager
def stacked(make_job: MakeJob, base: Path, folder: Path) -> Iterator[Stack]:
    """Works where a build would: in memory, if there is enough."""
    with private_scratch(BuildConfig()) as scratch:
        yield Stack(partial(make_job, scratch=scratch), base, folder)


def listed(layer: Layer) -> dict[str, tuple[str, str]]:
    """Path → (mode, owner) as ``unsquashfs`` shows them."""
    argv = ["unsquashfs", "-lln", str(layer.file)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    rows = [line.split() for line in shown.stdout.splitlines()]
    return {
        row[-1].removeprefix("squashfs-root"): (row[0], row[1])
        for row in rows
        if row and row[-1].startswith("squashfs-root/")
    }
