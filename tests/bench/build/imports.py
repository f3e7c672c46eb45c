"""How long a first ``import`` takes in a new process, in a new container and in an old.

The same command for every image, as a worker would run it: a clean environment, no
home directory, and for ours the layer of bytecode where there is one. That the image
starts and its packages import is checked by this.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench.build.stage import Stage, call

INSIDE = """\
import json, resource, subprocess, sys, time
times, used = [], []
def cpu():
    of = resource.getrusage(resource.RUSAGE_CHILDREN)
    return of.ru_utime + of.ru_stime
for _ in range(8):
    began, before = time.monotonic(), cpu()
    subprocess.run([sys.executable, "-c", {statement!r}], check=True)
    times.append(time.monotonic() - began)
    used.append(cpu() - before)
import importlib.metadata as m
versions = {{n: m.version(n) for n in {packages!r}}}
print(json.dumps([times[1:], used[1:], versions]))
"""


@dataclass(frozen=True)
class Imports:
    """Seconds of one image.

    :param container: of ``apptainer exec IMAGE python -c "import …"``
    :param process: of ``python -c "import …"`` in a running container
    :param cpu: seconds of processors that such a process takes itself
    :param versions: of the packages that were asked for
    """

    container: float
    process: float
    cpu: float
    versions: dict[str, str]


def measure(
    stage: Stage,
    image: Path,
    modules: tuple[str, ...],
    packages: tuple[str, ...],
    *,
    python: str = "python3",
    bytecode: Path | None = None,
) -> Imports:
    """Import ``modules`` in ``image``, in a new container and in a running one.

    :raises WayFailedError: they cannot be imported
    """
    statement = f"import {', '.join(modules)}"
    overlay = ["--overlay", f"{bytecode}:ro"] if bytecode else []

    def run(*command: str) -> str:
        argv = stage.apptainer.exec_argv(
            image, command, options=["--no-home", *overlay], cwd="/"
        )
        inside = {"PYTHONNOUSERSITE": "1"}
        return call(argv, env=stage.apptainer.environment(inside=inside))

    began = time.monotonic()
    run(python, "-c", statement)
    container = time.monotonic() - began
    code = INSIDE.format(statement=statement, packages=list(packages))
    processes, used, versions = json.loads(run(python, "-c", code).splitlines()[-1])
    middle = statistics.median
    return Imports(container, middle(processes), middle(used), versions)


def check(stage: Stage, image: Path, command: tuple[str, ...]) -> None:
    """See that a command works in ``image``.

    :raises WayFailedError: it does not
    """
    argv = stage.apptainer.exec_argv(image, command, options=["--no-home"], cwd="/")
    call(argv, env=stage.apptainer.environment())
