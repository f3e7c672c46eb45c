"""The layer of Python packages: one virtual environment over the base's own Python.

Runs in the endpoint process. The environment is at a fixed place in the image, first
on PATH, and sees the base's packages; what it has of its own shadows them. Nothing of
the base is touched. It is resolved at every build, which takes a fraction of a second
with a warm cache, and made only if the same packages were not yet laid over such a
Python.

There are two ways. Where everything has wheels, uv on the host installs them
(:mod:`.wheels`); else uv inside the image builds what has none (:mod:`.inside`). That
the first does not do is learned by trying it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.layer import (
    ENVIRONMENT_SCRIPTS,
    HOME,
    Layer,
    layer_key,
    place_marker,
)
from globus_compute_apptainer.build.layers import LAYER_FILE, kept_layer, squash
from globus_compute_apptainer.build.python import resolution, uv, venv
from globus_compute_apptainer.build.python.compiled import Compiled
from globus_compute_apptainer.build.python.inside import Inside
from globus_compute_apptainer.build.python.uv import HostUv
from globus_compute_apptainer.build.python.wheels import NoWheelError, Wheels
from globus_compute_apptainer.build.scratch import private_folder, remove_tree
from globus_compute_apptainer.build.system import kit
from globus_compute_apptainer.errors import is_full

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Inventory, Python
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.build.python.resolution import Pin

SCRIPT: Final = f"{ENVIRONMENT_SCRIPTS}/94-gc-apptainer-env.sh"

READABLE: Final = ("-action", "chmod(ugo+rX)@true")
"""Whatever the umask of this process: everyone can read what is in a layer."""

_VERSION: Final = re.compile(r"\d+\.\d+[0-9A-Za-z.+]*")


@dataclass(frozen=True)
class _Made:
    """How one layer is to be made.

    :param place: name of the environment below :data:`~.layer.HOME`
    :param requirements: as they were asked for; empty where a lock was given
    """

    job: Job
    below: Below
    python: Python
    shelf: Keeper
    place: str
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    hashes: Mapping[str, tuple[str, ...]]
    locked: tuple[Pin, ...] | None
    project: Path | None
    projects: tuple[str, ...]

    @property
    def env(self) -> str:
        return f"{HOME}/{self.place}"


def python_layer(
    job: Job,
    below: Below,
    requirements: Sequence[str],
    shelf: Keeper,
    packages: Path,
    *,
    constraints: Sequence[str] = (),
    hashes: Mapping[str, Sequence[str]] | None = None,
    project: Path | None = None,
    projects: Sequence[str] = (".",),
    locked: Sequence[str] | None = None,
) -> Layer | None:
    """A layer with the packages that ``requirements`` need and the base lacks.

    :param requirements: PEP 508, as :mod:`~..spec.requirements` lets them through
    :param packages: directory of the endpoint's package cache
    :param constraints: requirements that hold for whatever gets installed
    :param hashes: name → ``algorithm:hex`` of the files that it may be
    :param project: a source tree to install from, with what it needs
    :param projects: what of it: ``.`` or ``./PATH``, perhaps with ``[extras]``
    :param locked: lines of a requirements file, of which exactly these are
        installed; nothing is resolved then
    :returns: None where the base has everything already
    :raises BuildError: there is no Python to install for (``no-python``), something
        cannot be had (``package-not-found``, ``index-unreachable``,
        ``hash-mismatch``) or built
        (``build-failed``), or a package that was asked for does not work with
        another (``package-conflict``)
    """
    job.enter("pip")
    made = _Made(
        job,
        below,
        _python(job, below.inventory),
        shelf,
        environment_name(below.inventory.ours),
        tuple(requirements),
        tuple(constraints),
        {name: tuple(given) for name, given in (hashes or {}).items()},
        None if locked is None else _pins(job, locked),
        project,
        tuple(projects),
    )
    return _either_way(made, packages)


def _pins(job: Job, locked: Sequence[str]) -> tuple[Pin, ...]:
    try:
        return resolution.parse_pins("\n".join(locked))
    except ValueError as error:
        raise job.error(
            f"the lock cannot be read: {error}", code="lock-invalid"
        ) from None


def environment_name(ours: Sequence[str]) -> str:
    """``env``, or the next one where the base has it: two are never merged."""
    names = itertools.chain(["env"], (f"env{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in ours)


def _python(job: Job, inventory: Inventory) -> Python:
    """The image's Python, whose answers go into paths and settings."""
    python = inventory.python
    if python is None:
        raise job.error(
            "the base image has no Python to install packages for", code="no-python"
        )
    places = [python.base_prefix, python.base_executable, *python.site_packages]
    sound = all(place.startswith("/") and place.isprintable() for place in places)
    if not (sound and _VERSION.fullmatch(python.version)):
        raise job.error("the base image's Python says strange things of itself")
    return python


def _either_way(made: _Made, packages: Path) -> Layer | None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_work_folder(made.job, packages))
        host = HostUv(made.job, packages, folder)
        platform = resolution.platform(made.below.inventory)
        if platform is not None and made.project is None:
            try:
                return _layer(made, Wheels(host, made.python, platform))
            except NoWheelError as lacking:
                note = f"no wheel of {lacking} for this image: it is built inside"
                made.job.transcript.note(note)
        return _layer(made, stack.enter_context(_inside(made, host)))


@contextlib.contextmanager
def _work_folder(job: Job, packages: Path) -> Iterator[Path]:
    """A private directory on the file system of the package cache."""
    work = packages / "work"

    def later(folder: Path) -> None:
        # Thousands of files, and what comes next does not need the room.
        job.beside(functools.partial(remove_tree, folder), "remove-environment")

    with contextlib.ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(private_folder(work, later))
        except OSError as error:
            full = is_full(error)
            raise job.error(
                f"the package cache {packages} cannot be used: {error.strerror}",
                code="disk-full" if full else "cache-unusable",
                hint="name another directory as `build.package_cache`",
            ) from error
        yield folder


@contextlib.contextmanager
def _inside(made: _Made, host: HostUv) -> Iterator[Inside]:
    inventory = made.below.inventory
    program = uv.static_program(host, inventory.machine) or uv.find()
    if program is None:
        raise made.job.error("uv is not installed beside the endpoint")
    with kit.laid_out(made.job, "pip") as laid:
        yield Inside(
            made.job,
            made.below,
            made.python,
            laid,
            program,
            made.env,
            made.project,
            made.projects,
        )


def _layer(made: _Made, way: Wheels | Inside) -> Layer | None:
    """
    :raises NoWheelError: this way is not enough
    """
    pins = made.locked
    if pins is None:
        pins = way.resolve(made.requirements, made.constraints)
        _check_hashes(made.job, pins)
        pins = _with_hashes(made, pins)
    new, had = resolution.beyond(pins, made.python.packages)
    notes = [*way.notes, *_conflicts(made, new, had)]
    for note in notes:
        made.job.transcript.note(note)
    if not new and made.project is None:
        made.job.transcript.note("the base image has all of that already")
        return None
    key = layer_key("pip", **_made_of(made, way, new))

    def make(workspace: Path) -> Mapping[str, Any]:
        return _make(made, way, key, new, workspace)

    layer = kept_layer(made.job, made.shelf, "pip", key, make)
    lock = {
        **layer.lock,
        "requirements": list(made.requirements),
        "from_base": [{"name": pin.name, "version": pin.version} for pin in had],
        "notes": notes,
    }
    return replace(layer, lock=lock)


def _check_hashes(job: Job, pins: Sequence[Pin]) -> None:
    for pin in resolution.misnamed(pins):
        url = job.site.redact(pin.url)
        raise job.error(
            f"the file of {pin.name} is not the one that its URL names: {url}",
            code="hash-mismatch",
            hint="whoever gave the hash, or that server, has another file; check both",
        )


def _with_hashes(made: _Made, pins: Sequence[Pin]) -> tuple[Pin, ...]:
    try:
        return resolution.with_hashes(pins, made.hashes)
    except LookupError as error:
        raise made.job.error(
            f"the requirements have hashes, but none for {error}",
            code="hash-mismatch",
            hint="give every package that is needed a hash, or none",
        ) from None


def _made_of(made: _Made, way: Wheels | Inside, new: Sequence[Pin]) -> dict[str, Any]:
    """For the key. What is built inside says itself what it is: so that it cannot take
    the place of something else, what led to it counts too."""
    asked: list[str] = []
    if not isinstance(way, Wheels):
        asked = [*made.requirements, "", *made.constraints]
    return {
        "way": way.name,
        "place": made.place,
        "packages": sorted(pin.line for pin in new),
        "asked": asked,
        **way.made_of(),
    }


def _conflicts(made: _Made, new: Sequence[Pin], had: Sequence[Pin]) -> list[str]:
    """Remarks on packages of the base that no longer get what they need.

    :raises BuildError: one of them is among what was asked for
    """
    found = resolution.conflicts(made.below.inventory, made.python, new)
    asked = {pin.name for pin in had}
    for conflict in found:
        if conflict.user in asked:
            raise made.job.error(
                f"the packages asked for do not go together: {conflict}",
                code="package-conflict",
                hint=f"ask for another version of {conflict.user} too, or leave "
                "the base image's as it is",
            )
    return [str(conflict) for conflict in found]


def _make(
    made: _Made, way: Wheels | Inside, key: str, new: Sequence[Pin], workspace: Path
) -> Mapping[str, Any]:
    root, env = way.root, way.root / made.env.lstrip("/")
    env.parent.mkdir(parents=True)
    root.chmod(0o755)  # it will be the image's own
    way.install(new, env)
    complete = _lay_bytecode(made, way, env)
    place_marker(root, key)
    script = root / SCRIPT.lstrip("/")
    script.parent.mkdir(parents=True)
    script.write_text(f'PATH="{made.env}/bin:$PATH"\nexport PATH\n', "utf-8")
    squash(made.job, root, workspace / LAYER_FILE, *READABLE)
    lock = _lock(made, way, new, venv.installed(env, made.python.minor))
    return {**lock, "bytecode": complete}


def _lay_bytecode(made: _Made, way: Wheels | Inside, env: Path) -> bool:
    """Lay in what was compiled before; whether nothing is left to compile."""
    if not isinstance(way, Wheels):
        return False
    known = Compiled.of(way.host.packages, made.env, made.python)
    return known is not None and known.lay(env)


def _lock(
    made: _Made, way: Wheels | Inside, new: Sequence[Pin], there: Mapping[str, str]
) -> dict[str, Any]:
    """What is in the layer, for whoever gets it."""
    named = {pin.name for pin in new}
    found: dict[str, Any] = {
        "packages": [
            _package(made.job, pin) for pin in resolution.with_versions(new, there)
        ],
        "indexes": _indexes(made.job),
        "environment": made.env,
        "uv": uv.version(),
        "way": way.name,
    }
    if made.project is not None:
        found["project"] = [
            {"name": name, "version": version}
            for name, version in sorted(there.items())
            if name not in named
        ]
    return found


def _package(job: Job, pin: Pin) -> dict[str, Any]:
    found: dict[str, Any] = {"name": pin.name, "version": pin.version}
    found["hashes"] = list(pin.hashes)
    if pin.url:
        found["url"] = job.site.redact(pin.url)
    return found


def _indexes(job: Job) -> list[str]:
    """Where packages come from on this site, without credentials."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
    given = " ".join(job.site.host.get(name, "") for name in names)
    links = job.site.host.get("UV_FIND_LINKS", "").split(",")
    return [job.site.redact(one) for one in [*given.split(), *links] if one]
