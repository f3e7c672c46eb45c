"""What a container spec adds to handing a task over, beside the stock engine.

    python tests/bench/submit.py [--tasks N] [--rounds N]

One process, one run: the stock ``GlobusComputeEngine``, ``ApptainerEngine`` without a
spec, and ``ApptainerEngine`` with a spec whose image is cached, each on a real Parsl
executor with its interchange (and no workers, so that nothing competes), in turn.
Timed is ``engine.submit``: validation, digest, cache look-up and hand-over. Printed are
medians per task, 99th percentiles, and the time added to the stock engine's.
Also: what the ``.pth`` hook and importing the package cost an interpreter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from parsl.providers import LocalProvider

from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.manifest import Manifest, platform_name

SPEC = {
    "base_image": "python:3.11-slim",
    "pip": ["pandas>=2", "numpy", "scikit-learn", "matplotlib", "requests", "pyyaml"],
    "env": {"OMP_NUM_THREADS": "2"},
}


def cache_an_image(cache: Path) -> None:
    """A published entry for :data:`SPEC`; its content is never run here."""
    image = model.parse(SPEC).image_spec(default_base="docker://x", python="3.11")
    sif = cache.parent / "image.sif"
    sif.write_bytes(b"x" * index.SIF_MAGIC_AT + index.SIF_MAGIC + b"x" * 4096)
    manifest = Manifest(
        spec_digest=image.digest, image_digest="", size=0,
        spec=json.loads(image.canonical()),
        base=image.base_image, base_digest=None, python="/usr/bin/python3",
        python_version="3.11.2", os="", packages=(), platform=platform_name(),
        apptainer_version="1.4.5", builder_version="0", created="2026-01-01T00:00:00Z",
        build_seconds=1.0, stage_seconds={}, log="", name="",
    )  # fmt: skip
    store = Store(cache)
    store.prepare()
    store.publish(sif, manifest)


def start(kind: Any, folder: Path, **kwargs: Any) -> Any:
    provider = LocalProvider(init_blocks=0, min_blocks=0, max_blocks=0)
    engine = kind(address="127.0.0.1", provider=provider, strategy="none", **kwargs)
    folder.mkdir()
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(folder))
    return engine


def time_submits(engine: Any, resources: dict[str, Any], tasks: int) -> list[float]:
    times = []
    for _ in range(tasks):
        future, mine = GCFuture(uuid.uuid4()), dict(resources)
        began = time.perf_counter()
        engine.submit(future, b"x" * 500, mine)
        times.append(time.perf_counter() - began)
    return times


def measure_submits(tasks: int, rounds: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache_an_image(folder / "cache")
        stock = start(GlobusComputeEngine, folder / "stock")
        ours = start(
            ApptainerEngine,
            folder / "ours",
            containers={"cache_dir": str(folder / "cache")},
        )
        cases = {
            "stock engine": (stock, {}),
            "ours, no spec": (ours, {}),
            "ours, cached spec": (ours, {"container": SPEC}),
        }
        times: dict[str, list[float]] = {case: [] for case in cases}
        try:
            for _ in range(rounds):
                for case, (engine, resources) in cases.items():
                    times[case] += time_submits(engine, resources, tasks)
        finally:
            stock.shutdown()
            ours.shutdown()
        return times


def measure_start(what: str, runs: int) -> float:
    """Median seconds of one statement in fresh interpreters."""
    code = (
        "import sys, time; [sys.modules.pop(m) for m in list(sys.modules)"
        " if m.startswith('globus_compute_apptainer')];"
        f"began = time.perf_counter(); {what}; print(time.perf_counter() - began)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(runs)
    ]
    return statistics.median(map(float, outputs))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=500, help="per case and round")
    options.add_argument("--rounds", type=int, default=6)
    given = options.parse_args()

    times = measure_submits(given.tasks, given.rounds)
    stock = statistics.median(times["stock engine"])
    print(f"{'hand-over of one task':<24}{'p50 ms':>9}{'p99 ms':>9}{'added ms':>10}")
    for case, values in times.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        added = p50 - stock
        print(f"{case:<24}{p50 * 1e3:>9.3f}{p99 * 1e3:>9.3f}{added * 1e3:>10.3f}")

    runs = max(3, given.rounds * 3)
    print(f"\n{'at interpreter start':<40}{'ms':>8}")
    for label, what in (
        ("the .pth hook", "import globus_compute_apptainer.endpoint.register"),
        ("import globus_compute_apptainer", "import globus_compute_apptainer"),
    ):
        print(f"{label:<40}{measure_start(what, runs) * 1e3:>8.3f}")


if __name__ == "__main__":
    main()
