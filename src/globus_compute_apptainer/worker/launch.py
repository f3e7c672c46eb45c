"""How a container for tasks is started: its command line and its environment.

Runs in worker processes. Bound into every container, read-only, under ``/.gca``: our
agent, and the SDK's serializers and ``dill`` from the worker's own environment, so
that the image needs nothing but a Python. The folder that tasks run in is bound
writable at its own path; ``/tmp`` and the home directory are there as Apptainer's
configuration has it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import Apptainer, bind, is_exportable
from globus_compute_apptainer.build.layer import HOME, PAYLOAD
from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import inside
from globus_compute_apptainer.worker.environment import without_proxy_credentials
from globus_compute_apptainer.worker.inside import start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from globus_compute_apptainer.worker.order import ContainerOrder

INSIDE: Final = "/.gca"
BOUND_PACKAGES: Final = ("globus_compute_sdk", "dill")

LAYER_MISSING: Final = "gc-apptainer: a layer of the image is missing: "

# $1: how many files must be there; then these; then the program to become.
_CHECK: Final = rf"""
count=$1
shift
while [ "$count" -gt 0 ]; do
    [ -e "$1" ] || {{ echo "{LAYER_MISSING}$1" >&2; exit 78; }}
    shift
    count=$((count - 1))
done
exec "$@"
"""


@dataclass(frozen=True)
class Launch:
    """A program to start: arguments, environment, and the folder to start it in."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: str


def launch(order: ContainerOrder, run_dir: str) -> Launch:
    """The program that starts the agent in the container of ``order``.

    :param run_dir: absolute path of the folder that tasks run in; it exists
    :raises TaskError: the image has no Python (``no-python``), or is not what it was
        when it was ordered (``image-missing``)
    :raises HostError: there is no usable Apptainer on this machine
    """
    if order.python is None:
        raise no_python(order, "a Python function")
    agent_argv = [
        *(order.python, "-s", "-c", start.BOOT, f"{INSIDE}/ours"),
        *(f"{INSIDE}/library", sdk_version(), json.dumps(order.preload)),
    ]
    return _launch(
        order,
        agent_argv,
        folder=run_dir,
        binds=[*_own_binds(), bind(run_dir)],
        options=_bytecode(order),
        env={"PYTHONNOUSERSITE": "1"},
    )


def launch_shell(
    order: ContainerOrder, run_dir: str, script: Sequence[str], env: Mapping[str, str]
) -> Launch:
    """The program that starts ``/bin/sh`` in the container of ``order``.

    :param script: what it runs, and its arguments
    :param env: variables of the task, beside the spec's
    :raises TaskError: the image is not what it was when it was ordered
        (``image-missing``)
    :raises HostError: there is no usable Apptainer on this machine
    """
    command = ["/bin/sh", "-c", script[0], "sh", *script[1:]]
    return _launch(order, command, folder=run_dir, binds=[bind(run_dir)], env=env)


def launch_program(
    order: ContainerOrder,
    command: Sequence[str],
    folder: str,
    binds: Sequence[str],
    env: Mapping[str, str],
) -> Launch:
    """Any program in the container of ``order``.

    :param folder: working directory; inside, too, if ``binds`` has it
    :param binds: beside the order's
    :param env: variables, beside the order's
    :raises TaskError: the image is not what it was (``image-missing``)
    :raises HostError: there is no usable Apptainer on this machine
    """
    return _launch(
        order,
        command,
        folder=folder,
        binds=binds,
        options=_bytecode(order),
        env={**env, "PYTHONNOUSERSITE": "1"},
    )


def _launch(
    order: ContainerOrder,
    command: Sequence[str],
    *,
    folder: str,
    binds: Sequence[str],
    options: Sequence[str] = (),
    env: Mapping[str, str],
) -> Launch:
    _check_image(order)
    apptainer = _apptainer(order.apptainer)
    argv = apptainer.exec_argv(
        order.image,
        [*_checked(order), *command],
        binds=[*binds, *order.binds],
        gpu=order.gpu,
        options=[*options, *order.options],
        cwd=folder,
    )
    named = {name: value for name, value in env.items() if is_exportable(name)}
    environment = apptainer.environment(inside={**dict(order.env), **named})
    return Launch(tuple(argv), without_proxy_credentials(environment), folder)


def no_python(order: ContainerOrder, why: str) -> TaskError:
    """The error of a task that an image without Python cannot run.

    :param why: what of it needs one
    """
    return TaskError(
        f"the image made from {order.base} has no Python, which {why} needs; without it"
        " only a `ShellFunction` can run",
        hint="choose a `base_image` with Python 3.9 or newer, or leave it out and "
        'name the version that you want, such as `python: "3.11"`',
        code="no-python",
    )


def _checked(order: ContainerOrder) -> list[str]:
    """What to start the agent through: a look for the layers, and ``start``.

    Apptainer starts the bare base without a word where it cannot show layers.
    """
    start = [order.start] if order.start else []
    if not order.markers:
        return start
    number = str(len(order.markers))
    return ["/bin/sh", "-c", _CHECK, "sh", number, *order.markers, *start]


def _bytecode(order: ContainerOrder) -> list[str]:
    """The layer of compiled Python, if it is still there: it is only for speed.

    Python does not look whether it belongs to a source that is bound over the image's.
    """
    targets = [item.split(":")[1] for item in order.binds if ":" in item]
    over = any(target.startswith((f"{HOME}/", f"{PAYLOAD}/")) for target in targets)
    if order.bytecode is None or over or not Path(order.bytecode).exists():
        return []
    return ["--overlay", f"{order.bytecode}:ro"]


def _check_image(order: ContainerOrder) -> None:
    path = Path(order.image)
    try:
        size = path.stat().st_size
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
    else:
        if size == order.size:
            return
        found = f"has {size} bytes instead of {order.size}"
    raise TaskError(
        f"the container image {path} {found}",
        hint="submit the task again; if it stays so, the endpoint's `cache_dir` may "
        "not be shared with its compute nodes",
        code="image-missing",
    )


@functools.cache
def sdk_version() -> str:
    """Of the serializers that are bound into containers."""
    return importlib.metadata.version("globus-compute-sdk")


@functools.cache
def _apptainer(program: str | None) -> Apptainer:
    # What it says of its version takes longer than a new worker does; it is asked when
    # it has failed, see :mod:`.runner`.
    return Apptainer.located(program)


@functools.cache
def _own_binds() -> tuple[str, ...]:
    packages = [
        bind(_folder_of(name), f"{INSIDE}/library/{name}", read_only=True)
        for name in BOUND_PACKAGES
    ]
    source = Path(inside.__file__).resolve().parent
    return (bind(source, f"{INSIDE}/ours/{start.NAME}", read_only=True), *packages)


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the worker's Python environment lacks {package}")
    return Path(next(iter(spec.submodule_search_locations))).resolve()
