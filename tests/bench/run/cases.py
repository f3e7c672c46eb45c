"""What is measured. Every case is made when it is its turn; see README.md."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.run import memory, tasks
from bench.run.measures import Case, Limit, Ratio, Sample, quantile
from bench.run.stage import PATIENCE_SECONDS, Side, Stage, new_worker
from globus_compute_apptainer.build.apptainer import Apptainer

MEGABYTE = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Sizes:
    """How much is measured in one sample.

    :param tasks: for throughput; a third of it one by one
    :param images: the most different images
    :param sides: engines to compare: ``host``, ``ours``, ``upstream``
    """

    tasks: int = 1500
    images: tuple[int, ...] = (1, 4, 16)
    sides: tuple[str, ...] = ("host", "ours", "upstream")


def _sides(stage: Stage, sizes: Sizes) -> dict[str, Side]:
    """Engines by name, every worker with its container started."""
    found: dict[str, Side] = {name: getattr(stage, name) for name in sizes.sides}
    for side in found.values():
        _rate(side, 50)
    return found


def _rate(side: Side, number: int, specs: Any = (None,)) -> float:
    """Tasks a second, from the first submission to the last result."""
    packed = [tasks.packed(tasks.nothing) for _ in range(number)]
    began = time.perf_counter()
    futures = [
        side.submit(task, spec)
        for task, spec in zip(packed, itertools.cycle(specs), strict=False)
    ]
    answers = [future.result(PATIENCE_SECONDS) for future in futures]
    seconds = time.perf_counter() - began
    for answer in answers:
        tasks.value(answer)
    return number / seconds


def throughput(stage: Stage, sizes: Sizes) -> Case:
    def rate(side: Side) -> Callable[[], Sample]:
        return lambda: {"tasks/s": _rate(side, sizes.tasks)}

    f = "tasks/s"
    return Case(
        "throughput",
        f"{sizes.tasks} no-ops at once, 2 workers",
        {name: rate(side) for name, side in _sides(stage, sizes).items()},
        [
            Ratio("ours / host", ("ours", f), ("host", f), 1.0, 1.15, most=False),
            Ratio(
                "ours / upstream", ("ours", f), ("upstream", f), 1.1, 1.25, most=False
            ),
        ],
    )


def _one_by_one(side: Side, number: int, *call: Any) -> Sample:
    taken = []
    for _ in range(number):
        task = tasks.packed(*call)
        began = time.perf_counter()
        answer = side.submit(task).result(PATIENCE_SECONDS)
        taken.append((time.perf_counter() - began) * 1000)
        tasks.value(answer)
    return {"p50 ms": statistics.median(taken), "p99 ms": quantile(taken, 0.99)}


def sequential(stage: Stage, sizes: Sizes) -> Case:
    number = max(sizes.tasks // 3, 5)

    def way(side: Side) -> Callable[[], Sample]:
        return lambda: _one_by_one(side, number, tasks.nothing)

    return Case(
        "sequential",
        f"{number} no-ops, one after the other",
        {name: way(side) for name, side in _sides(stage, sizes).items()},
        [
            Ratio("p50, ours / host", ("ours", "p50 ms"), ("host", "p50 ms"), 1.4, 1.1),
            Ratio("p99, ours / host", ("ours", "p99 ms"), ("host", "p99 ms"), 1.6, 1.2),
        ],
    )


def payload(stage: Stage, sizes: Sizes) -> Case:
    number = max(sizes.tasks // 50, 3)

    def way(side: Side) -> Callable[[], Sample]:
        return lambda: _one_by_one(side, number, tasks.echo, MEGABYTE)

    return Case(
        "payload",
        f"{number} times 1 MiB there and back, one after the other",
        {name: way(side) for name, side in _sides(stage, sizes).items()},
        [Ratio("p50, ours / host", ("ours", "p50 ms"), ("host", "p50 ms"))],
    )


def _bare_start(stage: Stage) -> Callable[[], Sample]:
    """Seconds of ``apptainer exec IMAGE python3 -c pass``."""
    apptainer = Apptainer.find()
    image = stage.image(stage.base)
    argv = apptainer.exec_argv(image, ["python3", "-c", "pass"])

    def start() -> Sample:
        began = time.perf_counter()
        env = apptainer.environment()
        subprocess.run(argv, env=env, check=True, capture_output=True)
        return {"ms": (time.perf_counter() - began) * 1000}

    return start


def first(stage: Stage, sizes: Sizes) -> Case:
    """The image is ready, workers are up, and no container of it runs yet."""
    side, numbers = stage.ours, itertools.count()
    side.run(tasks.packed(tasks.nothing))

    def ours() -> Sample:
        spec = {**stage.base, "env": {"BENCH_RUN": f"{time.time()} {next(numbers)}"}}
        began = time.perf_counter()
        side.run(tasks.packed(tasks.nothing), spec)
        return {"ms": (time.perf_counter() - began) * 1000}

    return Case(
        "first",
        "first result in an image that is ready, from submission",
        {"ours": ours, "apptainer exec": _bare_start(stage)},
        [Ratio("ours / apptainer exec", ("ours", "ms"), ("apptainer exec", "ms"))],
    )


class _Workers:
    """Worker processes of one node, all with the same parent, that share a run."""

    def __init__(self, stage: Stage, spec: Mapping[str, Any]) -> None:
        self._order = stage.order(spec)
        self._folder = stage._run_dir()

    def take(self, *names: str) -> list[list[float]]:
        """Start a worker per name, one after the other; each runs its task five
        times while those before it live; milliseconds of each."""
        # A run of its own: what an earlier sample started may still be there.
        order = replace(self._order, env=(("BENCH_RUN", str(time.time())),))
        workers, taken = [], []
        try:
            for name in names:
                worker = new_worker(order, self._folder)
                workers.append(worker)
                assert worker.stdout and worker.stdin
                assert worker.stdout.readline() == "ready\n"
                seconds = []
                for _ in range(5):
                    worker.stdin.write(f"{name}\n")
                    worker.stdin.flush()
                    seconds.append(float(worker.stdout.readline()) * 1000)
                taken.append(seconds)
        finally:
            for worker in workers:
                worker.communicate(timeout=PATIENCE_SECONDS)
        return taken


def new_workers(stage: Stage, sizes: Sizes) -> Case:
    """The first task of a worker, less a later one of the same worker."""
    plain = _Workers(stage, stage.base)
    with_pandas = stage.with_preload({**stage.base, "pip": ["pandas"]}, "pandas")
    pandas = _Workers(stage, with_pandas)

    def empty() -> Sample:
        (first, *later), (second, *_) = plain.take("nothing", "nothing")
        warm = statistics.median(later)
        return {"first worker ms": first, "next worker ms": second - warm}

    def import_pandas() -> Sample:
        _, (second, *_) = pandas.take("use_pandas", "use_pandas")
        return {"next worker ms": second}

    return Case(
        "new-worker",
        "what a worker's first task takes longer; with pandas, all that it takes",
        {
            "no-op": empty,
            f"pandas{', preloaded' if 'preload' in with_pandas else ''}": import_pandas,
            "apptainer exec": _bare_start(stage),
        },
        [
            Ratio(
                "first worker / apptainer exec",
                ("no-op", "first worker ms"),
                ("apptainer exec", "ms"),
                1.6,
                1.3,
            )
        ],
        [
            Limit("next worker, ms", ("no-op", "next worker ms"), 5, 2),
            Limit(
                "next worker with pandas, ms",
                ("pandas, preloaded", "next worker ms"),
                15,
                8,
            ),
        ],
    )


def switching(stage: Stage, sizes: Sizes) -> Case:
    """Tasks that ask for one of K images in turn, over the same two workers."""
    most = max(sizes.images)
    specs = [{**stage.base, "build_env": {"BENCH": str(n)}} for n in range(most)]
    for spec in specs:
        stage.image(spec)
    number = max(sizes.tasks // 15, 2 * most)

    def way(side: Side, images: int) -> Callable[[], Sample]:
        chosen = specs[:images]
        return lambda: {"tasks/s": _rate(side, number, chosen)}

    ways: dict[str, Callable[[], Sample]] = {}
    for images in sizes.images:
        ways[f"{images}, room for 16"] = way(stage.roomy, images)
        ways[f"{images}, default room"] = way(stage.ours, images)
    for side in (stage.roomy, stage.ours):
        _rate(side, 2 * most, specs)

    def blocks() -> Sample:
        return {"room for 16": stage.roomy.blocks, "default room": stage.ours.blocks}

    f = "tasks/s"
    alone, all_of = f"{min(sizes.images)}, ", f"{most}, "
    return Case(
        "switching",
        f"{number} no-ops over K images in turn, 2 workers, no new block",
        {**ways, "blocks": blocks},
        [
            Ratio(
                f"{most} images / 1, room for 16",
                (f"{all_of}room for 16", f),
                (f"{alone}room for 16", f),
                0.7,
                0.9,
                most=False,
            ),
            Ratio(
                f"{most} images / 1, default room",
                (f"{all_of}default room", f),
                (f"{alone}default room", f),
                None,
                0.3,
                most=False,
            ),
        ],
        [Limit("blocks of workers", ("blocks", "room for 16"), 1, 1)],
    )


def memory_of_pandas(stage: Stage, sizes: Sizes) -> Case:
    """Four workers have used pandas; what the container's side of that weighs."""
    spec = stage.with_preload({**stage.base, "pip": ["pandas"]}, "pandas")
    stage.image(spec)

    def weigh() -> Sample:
        before = memory.processes()
        side = Side(stage.engine(workers=4), spec)
        try:
            pids = set()
            for seconds in range(1, 30):  # until all four workers have had one
                calls = [tasks.packed(tasks.use_pandas, seconds) for _ in range(8)]
                futures = [side.submit(call) for call in calls]
                pids |= {tasks.value(f.result(PATIENCE_SECONDS))[0] for f in futures}
                if len(pids) >= 4:
                    break
            return memory.weigh(memory.processes() - before)
        finally:
            side.engine.shutdown()

    return Case(
        "memory",
        "PSS after pandas, 4 workers" + (", preloaded" if "preload" in spec else ""),
        {"container's side": weigh},
        (),
        [Limit("PSS, MB", ("container's side", "PSS MB"), 150, 110)],
    )


CASES: dict[str, Callable[[Stage, Sizes], Case]] = {
    # Before there are engines, whose processes are never quite idle.
    "new-worker": new_workers,
    "throughput": throughput,
    "sequential": sequential,
    "payload": payload,
    "first": first,
    "switching": switching,
    "memory": memory_of_pandas,
}
