"""Real builds: real Apptainer, a real registry, the site's real package index."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.builder import Builder, Built
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec


@dataclass
class Workshop:
    """Builds images into its own directory, from the bases of one registry."""

    apptainer: Apptainer
    registry: str
    folder: Path
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    told: list[events.Event] = field(default_factory=list)
    sink: Callable[[events.Event], None] | None = None
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def config(self, **changes) -> BuildConfig:
        fields = {"http_registries": (self.registry,), "timeout": 300.0, **changes}
        return BuildConfig(**fields)

    def build(self, base: str = "python:3.11-slim", *, config=None, **spec) -> Built:
        """The image is moved out of the scratch directory, to ``folder``."""
        image = ImageSpec(
            f"{self.registry}/{base}", spec.pop("agent", "docker"), **spec
        )
        return self.build_spec(image, config)

    def build_spec(self, image: ImageSpec, config=None) -> Built:
        settings = config or self.config()
        site = SiteAccess.from_host(self.environ, settings)
        builder = Builder(self.apptainer, settings, site)
        with private_scratch(settings) as scratch:
            built = builder.build(
                image,
                scratch=scratch,
                log=self.log,
                sink=self.sink or self.told.append,
                cancel=self.cancel,
            )
            left = sorted(path.name for path in scratch.iterdir())
            assert left == ["image.def", "image.sif"]
            (self.folder / "image.sif").write_bytes(built.sif.read_bytes())
        return built

    def error(self, base: str = "python:3.11-slim", **spec) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.build(base, **spec)
        return caught.value

    def inside(self, *command: str) -> list[str]:
        """Lines that a command prints in the image built last."""
        lines: list[str] = []
        argv = self.apptainer.exec_argv(
            self.folder / "image.sif",
            command,
            options=["--no-home", "--no-mount", "cwd,tmp"],
            cwd="/",
        )
        env = self.apptainer.environment()
        ended = run(argv, env=env, timeout=60, on_line=lines.append)
        assert ended.ok, lines
        return [line for line in lines if not line.startswith("INFO: ")]


@pytest.fixture
def workshop(apptainer: Apptainer, registry: str, tmp_path: Path) -> Iterator[Workshop]:
    yield Workshop(apptainer, registry, tmp_path)
