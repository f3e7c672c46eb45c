"""A cache on a file system with so much room and no more: ``full.py CACHE SCRATCH``.

Runs in a mount namespace of its own. Asks for an image at every amount of room between
none and enough, in steps of one page, and prints what came of it each time.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hammer import Quick, is_right, spec

from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.images import ImageService
from globus_compute_apptainer.store import cache as cache_module
from globus_compute_apptainer.store.cache import Store

PAGE = 4096
ENOUGH = 60 * PAGE


def free(folder: Path) -> int:
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def fill(cache: Path, left: int) -> None:
    with (cache / "ballast").open("wb", buffering=0) as file:
        file.write(bytes(max(free(cache) - left, 0)))


def files(cache: Path) -> list[str]:
    """What a request may leave: nothing but locks, logs and leases."""
    found = [p for p in (cache / "v2").rglob("*") if p.is_file()]
    kept = {"locks", "logs", "leases"}
    parts = [path.relative_to(cache / "v2") for path in found]
    return sorted(str(path) for path in parts if path.parts[0] not in kept)


def attempt(cache: Path, scratch: Path, number: int) -> str:
    config = BuildConfig(tmp_dir=scratch)
    service = ImageService(Store(cache), lambda: Quick(lambda _: None), config)  # type: ignore[arg-type, return-value]
    try:
        return "right" if is_right(service, spec(number)) else "WRONG"
    except ContainerError as error:
        return error.code
    finally:
        service.close()


def main() -> None:
    cache, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    cache_module.MIN_FREE_BYTES = 0  # type: ignore[misc]
    Store(cache).prepare()
    outcomes: dict[str, int] = {}
    left: list[str] = []
    for room in range(0, ENOUGH, PAGE):
        before = files(cache)
        fill(cache, room)
        outcome = attempt(cache, scratch, 0)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        (cache / "ballast").unlink()
        if outcome == "right":
            Store(cache).make_room(0)
        left += [f"{room}: {name}" for name in files(cache) if name not in before]
        if attempt(cache, scratch, 1) != "right":
            outcomes["WRONG afterwards"] = 1
        Store(cache).make_room(0)
    print(json.dumps({"outcomes": outcomes, "left": left}))


if __name__ == "__main__":
    main()
