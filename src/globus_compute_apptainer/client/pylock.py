"""What a ``pylock.toml`` says is to be installed in one environment (PEP 751). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.client.outcome import unreadable
from globus_compute_apptainer.client.pin import Pin
from globus_compute_apptainer.errors import SpecError

if TYPE_CHECKING:
    from packaging.pylock import Package, Pylock
    from packaging.tags import Tag

_GLIBC: Final = range(5, 60)
_MUSL: Final = range(1, 6)


def from_pylock(
    document: Mapping[str, Any],
    where: str,
    environment: Mapping[str, str],
    extras: Collection[str] = (),
    groups: Collection[str] = (),
) -> Iterator[Pin]:
    """Every package that is for there, if it has a file that can be installed there.

    :raises SpecError: not a lock of PEP 751, or not for that environment; or
        ``packaging`` is older than 26.1, which brought the reader
    """
    try:
        from packaging import pylock  # noqa: PLC0415 - new in packaging
    except ImportError:
        raise _too_old(where) from None
    if not hasattr(pylock.Pylock, "select"):
        raise _too_old(where)
    try:
        lock = pylock.Pylock.from_dict(dict(document))
        chosen = list(_selected(lock, environment, extras, groups))
    except (
        pylock.PylockValidationError,
        pylock.PylockSelectError,
        ValueError,
    ) as error:
        raise unreadable(where, str(error)) from None
    for package, source in chosen:
        yield _pin(package, source)


def _selected(
    lock: Pylock,
    environment: Mapping[str, str],
    extras: Collection[str],
    groups: Collection[str],
) -> Iterator[tuple[Package, Any]]:
    return lock.select(
        environment=dict(environment),  # type: ignore[arg-type]  # a TypedDict
        tags=_tags(environment["python_version"], environment["platform_machine"]),
        extras=extras or None,
        dependency_groups=groups or None,
    )


def _tags(minor: str, machine: str) -> list[Tag]:
    """What wheels may be for: any Linux that an image may hold."""
    from packaging import tags  # noqa: PLC0415 - not every client needs it

    version = tuple(map(int, minor.split(".")))
    platforms = [f"manylinux_2_{n}_{machine}" for n in reversed(_GLIBC)]
    platforms += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010")]
    platforms += [f"manylinux1_{machine}", f"linux_{machine}"]
    platforms += [f"musllinux_1_{n}_{machine}" for n in _MUSL]
    return [
        *tags.cpython_tags(version, platforms=platforms),
        *tags.compatible_tags(version, f"cp{version[0]}{version[1]}", platforms),
    ]


def _pin(package: Package, source: Any) -> Pin:
    from packaging import pylock  # noqa: PLC0415 - checked above

    name = str(package.name)
    if isinstance(source, pylock.PackageArchive) and source.url:
        return Pin(name, f" @ {source.url}")
    if isinstance(source, (pylock.PackageWheel, pylock.PackageSdist)):
        if package.version is not None:
            return Pin(name, f"=={package.version}")
        return Pin(name, f" @ {source.url}") if source.url else Pin(name, "", _LOCAL)
    kind = "git" if isinstance(source, pylock.PackageVcs) else "a directory"
    return Pin(name, "", f"comes from {kind}")


_LOCAL: Final = "has no version and no URL"


def _too_old(where: str) -> SpecError:
    return unreadable(
        where,
        "this client's packaging does not read pylock.toml",
        "pip install 'packaging>=26.1', or export a requirements.txt",
    )
