"""A cache of many images: how long a look-up, a start and making room take.

    python tests/bench/store/run.py [--images 10000] [--work DIR]

Prints a table. The images are real files with real manifests, of some kilobytes each;
what is measured reads names, sizes and times, not contents.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.cache import IMAGE, MANIFEST, Store
from globus_compute_apptainer.store.manifest import Manifest

HEAD = b"\0" * index.SIF_MAGIC_AT + index.SIF_MAGIC
PACKAGES = tuple(f"package-{number}=={number}.{number}.0" for number in range(60))


def manifest(number: int) -> Manifest:
    digest = f"{number:04x}" + "0" * 60
    return Manifest(
        spec_digest=f"sha256:{digest}", image_digest=f"sha256:{digest}", size=4096,
        spec={"format": 1, "pip": list(PACKAGES)}, base="docker://python:3.11-slim",
        base_digest=f"sha256:{number % 7:064x}", python="/usr/bin/python3",
        python_version="3.11.2", os="Linux", packages=PACKAGES,
        platform="linux/amd64", apptainer_version="1.4.5", builder_version="0",
        created="2026-01-01T00:00:00+00:00", build_seconds=1.0,
        lock={"packages": [{"name": p, "hashes": [digest]} for p in PACKAGES]},
    )  # fmt: skip


def fill(root: Path, images: int) -> None:
    """As publishing does, without waiting for the disk each time."""
    content = HEAD + b"x" * (4096 - len(HEAD))
    for number in range(images):
        told = manifest(number)
        name, text = told.spec_digest[7:], told.to_json()
        entry = root / "v2/index/linux-amd64" / name[:2] / f"{name}.json"
        place = root / "v2/images/sha256" / name[:2] / name
        place.mkdir(parents=True)
        (place / IMAGE).write_bytes(content)
        (place / MANIFEST).write_text(text)
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(text)
        of_build = root / "v2/logs" / name[:2] / name / "20260101T000000Z-0.log"
        of_build.parent.mkdir(parents=True)
        of_build.write_text("done")
        lock = root / "v2/locks" / name
        lock.mkdir(parents=True)
        (lock / "00000001.free").touch()
        for path in (of_build, lock):
            os.utime(path, (0, 0))


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(root: Path, images: int, looks: int) -> list[tuple[str, str]]:
    chosen = random.Random(1)
    digests = [f"sha256:{chosen.randrange(images):04x}{0:060x}" for _ in range(looks)]
    store = Store(root, "linux/amd64")
    start = timed(store.prepare)
    before = megabytes()
    first = [timed(lambda d=d: store.lookup(d)) for d in digests]  # type: ignore[misc]
    again = [timed(lambda: store.lookup(digests[-1])) for _ in range(looks)]
    grown = megabytes() - before
    total = store.make_room(2**60, dry=True).before
    idle = timed(lambda: store.make_room(total))
    upkeep = timed(store.keep_up)
    few = timed(lambda: store.make_room(int(total * 0.99)))
    rows = [
        ("images", f"{images}"),
        ("start (prepare)", f"{start * 1000:.1f} ms"),
        ("look-up, p50", f"{statistics.median(first) * 1000:.3f} ms"),
        ("look-up, p99", f"{sorted(first)[int(len(first) * 0.99)] * 1000:.3f} ms"),
        ("look-up again, p50", f"{statistics.median(again) * 1000:.4f} ms"),
        ("making room, nothing to do", f"{idle:.2f} s"),
        ("making room, 1 % goes", f"{few:.2f} s"),
        ("all old logs and locks go", f"{upkeep:.2f} s"),
        ("memory that look-ups took", f"{grown:.1f} MB"),
    ]
    store.leases.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--looks", type=int, default=2000)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gc-apptainer-bench-", dir=options.work))
    try:
        fill(folder, options.images)
        for name, figure in measure(folder, options.images, options.looks):
            print(f"{name:32}{figure:>12}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
