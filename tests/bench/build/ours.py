"""(c) and (d): this package, through its public face.

Timed is what somebody waits who asks for an image: from the request to *ready*
(resolve, install, pack, checksum, probe, publish), and to *complete*, when the bytecode
that is compiled in the background is there too. Before each, all that an earlier build
of the same spec left behind is removed; what is kept says which case it is.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.build import channel
from bench.build.spent import Spent, Watch
from bench.build.stage import Stage
from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.bases.base import Bases
from globus_compute_apptainer.build.builder import STAGES
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.images import open_service
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.shelf import Shelf

COLD = frozenset({"bases", "tags"})
WARM = COLD | {"packages"}
LAYERS_KEPT = WARM | {"layers"}
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Made:
    """One build.

    :param ready: until the image could be used
    :param complete: until its bytecode was there as well
    """

    ready: Spent
    complete: Spent
    image: StoredImage

    @property
    def stages(self) -> dict[str, float]:
        return dict(self.image.manifest.stage_seconds)

    @property
    def bytecode(self) -> Path | None:
        return self.image.bytecode


class Ours:
    """Builds into a cache of its own."""

    def __init__(self, stage: Stage, name: str = "ours") -> None:
        cache = stage.folder / name
        build: dict[str, Any] = {
            "http_registries": [stage.registry],
            "conda_channels": [channel.url(stage.folder)],
        }
        self._config = ContainersConfig.parse(
            {"cache_dir": str(cache), "build": build}, os.environ
        )
        self._top = Store(cache).top

    def build(self, base: str, spec: Mapping[str, Any], keep: Collection[str]) -> Made:
        """Build ``spec`` on ``base``.

        :param keep: names of what stays in the cache from earlier builds
        """
        raw = {"base_image": base, **spec}
        image = model.parse(raw).image_spec(default_base=base, python="3.11")
        self.forget(keep)
        service = open_service(self._config, os.environ)
        try:
            watch = Watch()
            ready = service.request(image).result(TIMEOUT_SECONDS)
            spent = watch.read()
            service.settle()
            return Made(spent, watch.read(), self._again(image, ready))
        finally:
            service.close()

    def hit(self, base: str, spec: Mapping[str, Any]) -> float:
        """Seconds for an image that is there."""
        raw = {"base_image": base, **spec}
        image = model.parse(raw).image_spec(default_base=base, python="3.11")
        service = open_service(self._config, os.environ)
        try:
            began = time.monotonic()
            found = service.request(image).result(TIMEOUT_SECONDS)
            seconds = time.monotonic() - began
            assert found.cache != "built"
            return seconds
        finally:
            service.close()

    def take_in(self, base: str) -> Spent:
        """What it takes until a base that was never seen is on the shelf."""
        self.forget(())
        image = model.parse({"base_image": base}).image_spec(
            default_base=base, python="3.11"
        )
        config = self._config.build
        log_path = self._top / "base.log"
        self._top.mkdir(parents=True, exist_ok=True)
        bases = Bases(Shelf(self._top, "bases"), self._top / "tags")
        site = SiteAccess.from_host(os.environ, config)
        with private_scratch(config) as scratch, log_path.open("w") as log:
            transcript = Transcript(
                log,
                digest=image.digest,
                stages=STAGES,
                sink=events.ignore,
                redact=site.redact,
            )
            job = Job(
                image=image,
                apptainer=Apptainer.find(),
                config=config,
                site=site,
                scratch=scratch,
                log=log_path,
                transcript=transcript,
                cancel=threading.Event(),
                deadline=time.monotonic() + TIMEOUT_SECONDS,
            )
            watch = Watch()
            bases.get(job)
            return watch.read()

    def forget(self, keep: Collection[str]) -> None:
        """Remove from the cache all but what is named."""
        if not self._top.is_dir():
            return
        for path in self._top.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
        if "layers" not in keep:
            # Of what lay below other layers.
            for path in self._top.glob("tags/inventory-*"):
                path.unlink()

    def forget_lists(self) -> None:
        """Remove what apt knows of every base's mirrors."""
        shutil.rmtree(self._top / "packages/apt", ignore_errors=True)

    def _again(self, image: model.ImageSpec, ready: Any) -> StoredImage:
        """As a task that comes later finds it."""
        return Store(self._config.cache_dir).lookup(image.digest) or ready.image
