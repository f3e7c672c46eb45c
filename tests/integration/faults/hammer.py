"""Many processes that want images at once, and are killed at any moment.

A program: ``hammer.py CACHE SCRATCH PROCESSES REQUESTS KILLS SEED LIMIT``. The real
store and image service, with a builder that writes real files at once. One process
forks all others before it has any threads; those tell it of every request that was
answered, and it kills one of them, chosen at random, at answers chosen at random: the
victim is anywhere in its own work then. Prints a report as JSON.

With a ``LIMIT`` (bytes, 0: none), one more process makes room all the time.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from globus_compute_apptainer.build.order import Built, Order, Place
from globus_compute_apptainer.build.probe import Probe
from globus_compute_apptainer.build.scratch import sweep
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.images import ImageService, Ready
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.index import SIF_MAGIC, SIF_MAGIC_AT

SPECS = 20
PAYLOAD = 100_000
SECONDS = 400.0


class Quick:
    """Builds real files at once, each with its spec's digest and something random."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def build(self, order: Order, place: Place, *, finished: Any, **_: Any) -> Built:
        self._tell(f"build {order.image.digest}")
        with place.target.open("wb") as file:
            file.write(b"\0" * SIF_MAGIC_AT + SIF_MAGIC + order.image.digest.encode())
            for _ in range(10):
                file.write(os.urandom(PAYLOAD // 10))
                file.flush()
        finished(())
        return Built(
            base=order.image.base_image,
            base_digest="sha256:" + "b" * 64,
            probe=Probe("/usr/bin/python3", "3.11.2", "Linux", "glibc", (), True),
            layers=(),
            markers=(),
            reason="",
            start=None,
            lock={},
            stage_seconds={},
            apptainer_version="1.4.5",
        )


def spec(number: int) -> model.ImageSpec:
    parsed = model.parse({"base_image": "python:3.11-slim", "pip": [f"p{number}"]})
    return parsed.image_spec(default_base="docker://x", python="3.11")


def work(cache: Path, scratch: Path, requests: int, seed: int, out: int) -> None:
    """One process: so many requests, each image read and compared."""

    def tell(line: str) -> None:
        os.write(out, f"{os.getpid()} {line}\n".encode())

    chosen, config = random.Random(seed), BuildConfig(tmp_dir=scratch)
    service = ImageService(Store(cache), lambda: Quick(tell), config)  # type: ignore[arg-type, return-value]
    for _ in range(requests):
        wanted = spec(chosen.randrange(SPECS))
        tell("right" if is_right(service, wanted) else f"WRONG {wanted.digest}")
    service.close()


def is_right(service: ImageService, wanted: model.ImageSpec) -> bool:
    lease = None
    while lease is None:
        ready: Ready | None = service.cached(wanted.digest)
        if ready is None:
            ready = service.request(wanted).result(SECONDS)
        lease = service.use(ready)
    content = ready.image.path.read_bytes()
    lease.let_go()
    manifest = ready.image.manifest
    same = f"sha256:{hashlib.sha256(content).hexdigest()}" == manifest.image_digest
    return (
        same
        and manifest.spec_digest == wanted.digest
        and wanted.digest.encode() in (content)
    )


def make_room(cache: Path, limit: int, out: int) -> None:
    store = Store(cache)
    while True:
        try:
            freed = store.make_room(limit)
            if freed.things:
                os.write(out, f"{os.getpid()} freed\n".encode())
        except StoreError as error:
            if error.code != "lock-timeout":
                raise


def with_the_parent() -> None:
    """Die with the process that started this one, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Hammer:
    """Starts the others, kills some, and starts others in their place."""

    def __init__(self, cache: Path, scratch: Path, requests: int, seed: int) -> None:
        self._cache, self._scratch, self._requests = cache, scratch, requests
        self._random = random.Random(seed)
        self._reader, self._writer = os.pipe()
        self._left: dict[int, int] = {}
        self.report = dict.fromkeys(("right", "builds", "killed", "freed"), 0)
        self.wrong: list[str] = []

    def start(self, requests: int | None = None) -> None:
        count = self._requests if requests is None else requests
        seed = self._random.randrange(2**32)
        args = (self._cache, self._scratch, count, seed, self._writer)
        self._left[self._fork(work, *args)] = count

    def start_making_room(self, limit: int) -> None:
        self._maker = self._fork(make_room, self._cache, limit, self._writer)

    def run(self, kills: int) -> None:
        total = sum(self._left.values())
        when = sorted(self._random.sample(range(1, total), kills))
        deadline, rest = time.monotonic() + SECONDS, b""
        while self._left:
            ready = select.select([self._reader], [], [], deadline - time.monotonic())
            if not ready[0]:
                raise TimeoutError(f"still at work: {self._left}")
            *lines, rest = (rest + os.read(self._reader, 65536)).split(b"\n")
            for line in lines:
                pid, what, *_ = line.decode().split()
                self._heard(int(pid), what, line.decode())
            while when and self.report["right"] >= when[0] and self._left:
                when.pop(0)
                self._kill(self._random.choice(sorted(self._left)))

    def stop_making_room(self) -> None:
        os.kill(self._maker, signal.SIGKILL)
        os.waitpid(self._maker, 0)

    def _heard(self, pid: int, what: str, line: str) -> None:
        if what in ("right", "freed"):
            self.report[what] += 1
        elif what == "build":
            self.report["builds"] += 1
        elif what == "WRONG":
            self.wrong.append(line)
        if what == "right" and pid in self._left:
            self._left[pid] -= 1
        if what == "done" and self._left.pop(pid, None) is not None:
            status = os.waitpid(pid, 0)[1]
            if status:
                self.wrong.append(f"{pid} ended with {status}")

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        left = self._left.pop(pid)
        if os.WIFSIGNALED(status):
            self.report["killed"] += 1
            self.start(max(left, 1))

    def _fork(self, function: Callable[..., None], *args: Any) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            with_the_parent()
            function(*args)
            status = 0
        except BaseException as error:
            os.write(self._writer, f"{os.getpid()} WRONG {error!r}\n".encode())
        finally:
            os.write(self._writer, f"{os.getpid()} done\n".encode())
            os._exit(status)


def left_over(cache: Path, scratch: Path, limit: int) -> dict[str, Any]:
    """What there is once somebody starts again."""
    store, top = Store(cache), cache / "v2"
    store.prepare()
    sweep(scratch)
    if limit:
        store.make_room(limit)
    for number in range(SPECS):
        with store.lock(spec(number).digest, cancel=threading.Event(), timeout=0):
            pass
    locks = [p for p in (top / "locks").glob("*/*") if not p.name.endswith(".free")]
    locks += (top / "locks").glob("*/.*")
    found = {
        "tmp": sorted(p.name for p in (top / "tmp").iterdir()),
        "leases": sorted(p.name for p in (top / "leases").glob("*")),
        "locks": sorted(p.name for p in locks),
        "scratch": sorted(p.name for p in scratch.iterdir()),
        "images": len(list((top / "images/sha256").glob("*/*"))),
        "whole": len(list(store.images())),
        "bytes": store.make_room(0, dry=True).before,
    }
    store.leases.close()
    return found


def main() -> None:
    cache, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    processes, requests, kills, seed, limit = map(int, sys.argv[3:])
    with_the_parent()
    hammer = Hammer(cache, scratch, requests, seed)
    if limit:
        Store(cache).prepare()
        hammer.start_making_room(limit)
    for _ in range(processes):
        hammer.start()
    hammer.run(kills)
    if limit:
        hammer.stop_making_room()
    left = left_over(cache, scratch, limit)
    print(json.dumps({**hammer.report, "wrong": hammer.wrong, **left}))


if __name__ == "__main__":
    main()
