"""What a task in a container costs, beside a task outside of one.

    python tests/bench/run/run.py [--rounds N] [--tasks N] [--case NAME]… [--json FILE]

One process and one run: in every round each way takes one sample, in alternating order.
What the rows are is in README.md beside this.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

sys.path[0] = str(Path(__file__).resolve().parents[2])

import globus_compute_apptainer  # noqa: E402
from bench.run import cases, endpoint, measures  # noqa: E402
from bench.run.stage import Stage, stage  # noqa: E402
from globus_compute_apptainer.build.apptainer import Apptainer  # noqa: E402

NAMES = [*cases.CASES, "endpoint"]


def measure(case: measures.Case, rounds: int) -> dict[str, list[measures.Sample]]:
    """Every way of a case, ``rounds`` times, every second time in reverse."""
    taken: dict[str, list[measures.Sample]] = {way: [] for way in case.ways}
    for number in range(rounds):
        for way in list(case.ways)[:: 1 if number % 2 == 0 else -1]:
            taken[way].append(case.ways[way]())
            figures = ", ".join(f"{n} {v:.2f}" for n, v in taken[way][-1].items())
            tell(f"round {number + 1} {case.name} {way}: {figures}")
    return taken


def tell(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def opened(name: str, used: Stage, sizes: cases.Sizes) -> Iterator[measures.Case]:
    if name == "endpoint":
        with endpoint.case(used) as case:
            yield case
    else:
        yield cases.CASES[name](used, sizes)


def machine() -> dict[str, Any]:
    packages = ("globus-compute-endpoint", "parsl")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "apptainer": Apptainer.find().version,
        **{name: version(name) for name in packages},
    }


def state_dir() -> Path:
    """Where provisioning put things."""
    if named := os.environ.get("GCA_STATE_DIR"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gc-apptainer-test"


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    usual = cases.Sizes()
    options.add_argument("--case", action="append", choices=NAMES)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--tasks", type=int, default=usual.tasks)
    options.add_argument("--images", type=int, nargs="+", default=usual.images)
    options.add_argument("--sides", nargs="+", default=usual.sides)
    options.add_argument("--json", type=Path, help="where to write every sample")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    work = cache / "gc-apptainer-run-bench"
    options.add_argument("--work", type=Path, default=work, help=f"by default {work}")
    return options.parse_args()


def stop(_number: int, _frame: object) -> NoReturn:
    """SIGTERM leaves through the `with` blocks, so that no process stays behind; a
    second one does not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(1)


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, stop)
    # A checkout has no bytecode where pip would have compiled it.
    for folder in globus_compute_apptainer.__path__:
        compileall.compile_dir(folder, quiet=2)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    sizes = cases.Sizes(given.tasks, tuple(given.images), tuple(given.sides))
    store = Path(os.environ.get("GCA_REGISTRY_STORE") or state_dir() / "registry")
    results = {}
    print(f"{'':<54}{'median':>10}{'least':>10}{'most':>10}   (ratios: 95 % interval)")
    with stage(given.work, store) as used:
        for name in given.case or NAMES:
            with opened(name, used, sizes) as case:
                results[name] = measure(case, given.rounds)
                print(measures.table(case, results[name]), flush=True)
    if given.json:
        document = {"machine": facts, "cases": results}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"\n{time.monotonic() - BEGAN:.0f} s in all, load average at the end: {load}")
    return 0


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
