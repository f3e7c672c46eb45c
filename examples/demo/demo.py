"""The main job, without a Globus account: a task brings its own environment.

Starts the endpoint's engine in this process (Parsl's interchange and one worker on
this machine), and submits the function of ``where_am_i.py`` with the container spec
of ``spec.json`` attached, as a client would. The image is built while you watch, and
the function runs in it; then the same task again, twice. Ends with status 1 if anything
is not as claimed.

The base image comes from Docker Hub; where that cannot be reached, from the registry
on loopback that ``tests/provision/provision`` filled.

The same with the command line: ``gc-apptainer try spec.json -- python
where_am_i.py:where_am_i``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from globus_compute_apptainer.cli import output
from globus_compute_apptainer.cli.checks import network
from globus_compute_apptainer.cli.host import Host
from globus_compute_apptainer.cli.progress import Progress
from globus_compute_apptainer.endpoint.local import Outcome, local_engine

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]

from where_am_i import where_am_i  # noqa: E402

SPEC = json.loads((HERE / "spec.json").read_text())


def main() -> int:
    options = _options()
    with contextlib.ExitStack() as stack:
        block = stack.enter_context(base_image())
        block["cache_dir"] = options.keep_cache or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="gc-apptainer-demo-")
        )
        print(f"base image  {block['default_base']}")
        print(f"spec        {json.dumps(SPEC)}")
        print("function    where_am_i.py:where_am_i\n", flush=True)
        outcomes = run_task(block)
    for outcome in outcomes:
        if outcome.code:
            print(outcome.error, file=sys.stderr)
            return 1
    show(*outcomes)
    return check(*outcomes)


def run_task(block: dict[str, Any]) -> tuple[Outcome, Outcome, Outcome]:
    """The task as soon as its image is ready, once the image has its bytecode too (for
    which a container is started anew), and on what that left warm."""
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        progress.waiting("the engine starts")
        engine = stack.enter_context(local_engine(block, progress))
        progress.say("the task, submitted: its image is built unless it is there")
        progress.waiting("the image is looked up")
        first = engine.run(where_am_i, ["hello"], SPEC)
        if first.container.get("cache") == "hit":
            progress.say("an earlier demo had built the image: it was in the cache")
        progress.waiting("the image's bytecode is compiled")
        engine.settle()
        progress.say("the same task, now that the image has its bytecode too")
        progress.waiting("the task runs")
        second = engine.run(where_am_i, ["hello"], SPEC)
        progress.say("the same task again")
        third = engine.run(where_am_i, ["hello again"], SPEC)
    return first, second, third


def show(first: Outcome, second: Outcome, third: Outcome) -> None:
    inside = first.value
    here = {
        "pandas": _version("pandas"),
        "python": platform.python_version(),
        "os": platform.freedesktop_os_release()["PRETTY_NAME"],
    }
    print()
    output.table(
        ("", "found inside", "this machine, this process"),
        [(name, inside[name], here[name]) for name in here],
    )
    print(f"\nimage   {inside['image']}\n")
    output.table(
        ("task", "image", "build", "submission to result"),
        [
            _row("first", first),
            _row("image complete", second),
            _row("same again", third),
        ],
        right=("build", "submission to result"),
    )


def check(first: Outcome, second: Outcome, third: Outcome) -> int:
    """Say of every claim whether it holds; 1 if one does not."""
    inside, again = first.value, third.value
    claims = {
        "pandas worked inside": inside["sum"] == 42,
        "the Python is the one that the spec asked for": (
            inside["python"].startswith(SPEC["python"] + ".")
        ),
        "it ran in an Apptainer image": inside["image"].endswith(".sif"),
        "the image needs nothing of Globus": not inside["endpoint_importable"],
        "the second task found the image": second.container["cache"] == "hit",
        "the third ran in the container that was warm": (
            again["process"] == second.value["process"]
        ),
        "it had its own argument": again["greeting"] == "hello again",
        "it was faster": third.seconds < first.seconds,
    }
    print()
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO':4}{claim}")
    return 0 if all(claims.values()) else 1


@contextlib.contextmanager
def base_image() -> Iterator[dict[str, Any]]:
    """The start of a ``containers:`` block, with a base that can be had here."""
    reply = network.ask_registry(Host(), network.DOCKER_HUB, ())
    if reply.status in (200, 401):
        yield {"default_base": "docker://python:{python}-slim"}
        return
    from provision import services  # noqa: PLC0415 - of the tests, and not always here

    store = Path(_provisioned().get("GCA_REGISTRY_STORE", "/nowhere"))
    if not store.is_dir():
        sys.exit("Docker Hub cannot be reached, and nothing is provisioned: make demo")
    print("Docker Hub cannot be reached; using a registry on this machine")
    with services.registry(store) as address:
        yield {
            "default_base": f"docker://{address}/python:{{python}}-slim",
            "build": {"http_registries": [address]},
        }


def _provisioned() -> dict[str, str]:
    """What provisioning wrote down."""
    if named := os.environ.get("GCA_STATE_DIR"):
        state = Path(named)
    elif os.geteuid() == 0:
        state = Path("/var/lib/gc-apptainer-test")
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        state = Path(cache) / "gc-apptainer-test"
    text = (state / "env").read_text() if (state / "env").exists() else ""
    return dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    container = outcome.container
    build = f"{container['build_seconds']:.1f} s" if container["build_seconds"] else "-"
    return name, container["cache"], build, f"{outcome.seconds:.3f} s"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep-cache",
        metavar="DIR",
        type=lambda path: str(Path(path).absolute()),
        help="use this image cache and leave it; by default a fresh one, so that the "
        "build can be seen, which is removed at the end",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
