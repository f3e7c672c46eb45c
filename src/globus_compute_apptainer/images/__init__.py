"""The heart: images by spec, ready once and then for everybody.

Runs in the endpoint process and in ``gc-apptainer``. Ties together what is wanted
(``spec``), how it is made (``build``) and where it is kept (``store``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

from globus_compute_apptainer import events
from globus_compute_apptainer.build.order import Shelves
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.images.completion import ImageBuilder
from globus_compute_apptainer.images.request import (
    TRANSITIONS,
    CacheOutcome,
    Ready,
    State,
    outcome,
)
from globus_compute_apptainer.images.service import ImageService
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.room import BASES, LAYERS, PACKAGES
from globus_compute_apptainer.store.shelf import Shelf

__all__ = [
    "TRANSITIONS",
    "CacheOutcome",
    "ImageService",
    "Ready",
    "State",
    "open_service",
    "outcome",
]

# What builds take from the environment: indexes, certificates, proxies.
_SETTINGS = re.compile(r"(PIP_|UV_|CONDA_|SSL_CERT_|[a-zA-Z]+_(proxy|PROXY)\Z)")


def open_service(
    config: ContainersConfig,
    environ: Mapping[str, str],
    sink: events.Sink = events.ignore,
) -> ImageService:
    """The service that a configuration describes; touches nothing until asked.

    :param environ: what builds take the site's index and proxy settings from
    """
    store = Store(config.cache_dir)
    shelves = Shelves(
        bases=Shelf(store.top, BASES, store.leases),
        layers=Shelf(store.top, LAYERS, store.leases),
        tags=store.top / "tags",
        packages=config.build.package_cache or store.top / PACKAGES,
    )

    def builder() -> ImageBuilder:
        # Many an endpoint's images are all there already.
        from globus_compute_apptainer.build.apptainer import Apptainer  # noqa: PLC0415
        from globus_compute_apptainer.build.builder import Builder  # noqa: PLC0415
        from globus_compute_apptainer.build.site import SiteAccess  # noqa: PLC0415

        apptainer = Apptainer.find(config.apptainer)
        site = SiteAccess.from_host(environ, config.build)
        return Builder(apptainer, config.build, site, shelves)

    return ImageService(
        store,
        builder,
        config.build,
        shared=[Store(path) for path in config.shared_caches],
        max_cache_size=config.max_cache_size,
        scope=_scope(config, environ),
        sink=sink,
    )


def _scope(config: ContainersConfig, environ: Mapping[str, str]) -> str:
    """Tells who would meet the same failures: the user, with the settings of builds."""
    names = sorted(name for name in environ if _SETTINGS.match(name))
    told = (os.geteuid(), config.build, [(name, environ[name]) for name in names])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
