"""How long an image takes, from spec to ready, beside other ways to build it.

    python tests/bench/build/run.py [--rounds N] [--case NAME]… [--json FILE]

One process and one run: in every round each way builds each spec once, in alternating
order. What the columns are is in README.md beside this.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.build import table  # noqa: E402
from bench.build.cases import CASES, SMOKE, Case  # noqa: E402
from bench.build.peer import PACKAGE  # noqa: E402
from bench.build.stage import Stage, WayFailedError, stage  # noqa: E402
from bench.build.ways import Sample, Ways  # noqa: E402
from globus_compute_apptainer.errors import ContainerError  # noqa: E402

Results = dict[str, list[Sample]]


def measure(case: Case, ways: Ways, rounds: int, samples: Results) -> None:
    """Every way of a case, ``rounds`` times, every second time in reverse."""
    samples.update({way: [] for way in case.ways})
    for number in range(rounds):
        for way in case.ways if number % 2 == 0 else reversed(case.ways):
            os.sync()  # what the last one wrote is not the next one's to wait for
            sample = take(case, ways, way)
            samples[way].append(sample)
            said = sample.get("error") or f"{sample['ready']:.2f} s"
            tell(f"round {number + 1} {case.name} {way}: {said}")


def take(case: Case, ways: Ways, way: str) -> Sample:
    """One sample; a way that fails leaves its error, and the others go on."""
    try:
        return ways.table[way][1](case)
    except ContainerError as error:
        return {"error": f"{error}\n" + "\n".join(getattr(error, "tail", ())[-10:])}
    except Exception as error:
        if not isinstance(error, WayFailedError):
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def tell(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


def machine(used: Stage) -> dict[str, Any]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "apptainer": used.apptainer.version,
        "uv": version("uv"),
        "peer": PACKAGE,
    }


def write(file: Path, facts: dict[str, Any], results: dict[str, Results]) -> None:
    """Cases of an earlier run that were not run again stay in the file."""
    known = json.loads(file.read_text() or "{}")
    cases = {
        **known.get("cases", {}),
        **{name: {"machine": facts, "ways": found} for name, found in results.items()},
    }
    file.write_text(json.dumps({"cases": cases}, indent=1) + "\n")


def state_dir() -> Path:
    """Where provisioning put things."""
    if named := os.environ.get("GCA_STATE_DIR"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gc-apptainer-test"


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    names = [*CASES, SMOKE.name]
    options.add_argument("--case", action="append", choices=names)
    options.add_argument("--way", action="append", help="only these; for development")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path, help="where to write every sample")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    work = cache / "gc-apptainer-build-bench"
    options.add_argument("--work", type=Path, default=work, help=f"by default {work}")
    return options.parse_args()


def stop(_number: int, _frame: object) -> NoReturn:
    """SIGTERM leaves through the `with` blocks, so that no server stays behind."""
    raise SystemExit(1)


def benchmark(used: Stage, given: argparse.Namespace) -> dict[str, Results]:
    """Measure what was asked for; what there is of a case is told even when ended."""
    facts = machine(used)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    ways = Ways(used)
    labels = {way: label for way, (label, _) in ways.table.items()}
    results: dict[str, Results] = {}
    for name in given.case or CASES:
        case = SMOKE if name == SMOKE.name else CASES[name]
        if given.way:
            chosen = tuple(way for way in case.ways if way in given.way)
            case = dataclasses.replace(case, ways=chosen)
        results[name] = {}
        try:
            measure(case, ways, given.rounds, results[name])
        finally:
            print(table.of_case(case, results[name], labels), flush=True)
            if given.json:
                write(given.json, facts, results)
    return results


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, stop)
    if os.geteuid() == 0:
        print("run this as an ordinary user: the peer builds as one", file=sys.stderr)
        return 2
    if given.json:
        given.json.touch()  # better now than in half an hour
    store = Path(os.environ.get("GCA_REGISTRY_STORE") or state_dir() / "registry")
    with stage(given.work, store) as used:
        results = benchmark(used, given)
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    seconds = time.monotonic() - BEGAN
    print(f"\n{seconds:.0f} s in all, load average at the end: {load}")
    taken = [one for ways in results.values() for way in ways.values() for one in way]
    return int(any("error" in sample for sample in taken))


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
