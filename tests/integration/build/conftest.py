"""Real builds: real Apptainer, a real registry, the site's real package index."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.order import (
    Built,
    Compile,
    Order,
    Place,
    Shelves,
    ignore,
)
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.store.shelf import Shelf
from integration.build.world import World


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
    layered: Callable[[Compile], None] = ignore

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def config(self, **changes) -> BuildConfig:
        fields = {"http_registries": (self.registry,), "timeout": 300.0, **changes}
        return BuildConfig(**fields)

    @property
    def image(self) -> Path:
        """The image built last."""
        return self.folder / "image.sif"

    @property
    def shelves(self) -> Shelves:
        top = self.folder / "cache"
        return Shelves(
            Shelf(top, "bases"), Shelf(top, "layers"), top / "tags", top / "packages"
        )

    def build(
        self, base: str = "python:3.11-slim", *, config=None, policy=None, **spec
    ) -> Built:
        image = ImageSpec(
            f"{self.registry}/{base}", spec.pop("agent", "docker"), **spec
        )
        return self.build_spec(image, config, policy=policy)

    def build_spec(
        self,
        image: ImageSpec,
        config: BuildConfig | None = None,
        *,
        policy: Policy | None = None,
        **how: Any,
    ) -> Built:
        # Here, so that tests of its parts do not need all of them.
        from globus_compute_apptainer.build.builder import Builder

        settings = config or self.config()
        site = SiteAccess.from_host(self.environ, settings)
        builder = Builder(self.apptainer, settings, site, self.shelves)
        self.image.unlink(missing_ok=True)
        with private_scratch(settings) as scratch:
            return builder.build(
                Order(image, policy, **how),
                Place(scratch, self.image, self.log),
                sink=self.sink or self.told.append,
                cancel=self.cancel,
                layered=self.layered,
            )

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


MakeJob = Callable[..., Job]
STAGES = "resolve pull payload apt conda pip post pack probe".split()


@pytest.fixture
def told() -> list[events.Event]:
    """What the jobs of a test told."""
    return []


@pytest.fixture
def make_job(
    apptainer: Apptainer, registry: str, tmp_path: Path, told: list[events.Event]
) -> Iterator[MakeJob]:
    """``make_job(ImageSpec(f"{registry}/python:3.11-slim", "docker"), **fields)``.

    Scratch is ``tmp_path/scratch``, the log ``tmp_path/log``, the site as this host
    has it; the events are in the fixture ``told``. ``fields`` are those of Job.
    """
    log = (tmp_path / "log").open("a", encoding="utf-8")

    def make(image: ImageSpec | None = None, **changes: Any) -> Job:
        image = image or ImageSpec(f"{registry}/python:3.11-slim", "docker")
        scratch = changes.setdefault("scratch", tmp_path / "scratch")
        scratch.mkdir(parents=True, exist_ok=True)
        default = BuildConfig(http_registries=(registry,), timeout=300.0)
        config = changes.setdefault("config", default)
        site = changes.setdefault("site", SiteAccess.from_host(os.environ, config))
        transcript = Transcript(
            log,
            digest=image.digest,
            stages=STAGES,
            sink=told.append,
            redact=site.redact,
        )
        fields: dict[str, Any] = {
            "apptainer": apptainer,
            "log": tmp_path / "log",
            "transcript": transcript,
            "cancel": threading.Event(),
            "deadline": time.monotonic() + config.timeout,
        }
        return Job(image=image, **{**fields, **changes})

    with log:
        yield make


@pytest.fixture
def world(tmp_path: Path, make_job, apptainer: Apptainer) -> World:
    (tmp_path / "links").mkdir()
    return World(tmp_path, make_job, apptainer)


@pytest.fixture
def base(world: World, python_sif: Path) -> Below:
    return world.below(python_sif)
