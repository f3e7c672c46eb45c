"""From a ready image and a spec's run options to what a worker is told.

Runs in the endpoint process and in ``gc-apptainer``; pure, and imports nothing of
upstream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from globus_compute_apptainer.worker.order import ContainerOrder

if TYPE_CHECKING:
    from globus_compute_apptainer.config import ContainersConfig
    from globus_compute_apptainer.images import Ready
    from globus_compute_apptainer.spec.model import RunSpec


def container_order(
    ready: Ready, wanted: RunSpec, config: ContainersConfig
) -> ContainerOrder:
    """How to run ``ready`` as ``wanted``, on an endpoint that is configured so."""
    run, manifest, bytecode = config.run, ready.image.manifest, ready.image.bytecode
    return ContainerOrder(
        image=str(ready.image.path),
        size=manifest.size,
        spec_digest=manifest.spec_digest,
        image_digest=manifest.image_digest,
        base=manifest.base,
        cache=ready.cache,
        build_seconds=ready.seconds,
        apptainer_version=manifest.apptainer_version,
        python=manifest.python,
        python_version=manifest.python_version,
        pieces=manifest.piece_sizes,
        markers=manifest.markers,
        start=manifest.start,
        bytecode=None if bytecode is None else str(bytecode),
        gpu=wanted.gpu,
        binds=wanted.binds,
        env=wanted.env,
        options=run.options,
        preload=tuple(dict.fromkeys((*run.preload, *wanted.preload))),
        isolation=run.isolation,
        warm_per_worker=run.warm_per_worker,
        warm_per_node=run.warm_per_node,
        warm_memory=run.warm_memory,
        idle_timeout=run.idle_timeout,
        stage_to=run.stage_to,
        stage_size=run.stage_size,
        start_timeout=run.start_timeout,
        apptainer=config.apptainer,
    )
