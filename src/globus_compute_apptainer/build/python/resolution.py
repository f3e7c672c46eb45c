"""Which Python packages an image needs beyond what its base has. Pure.

uv resolves; this says for what platform, and what its answer means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import Version

from globus_compute_apptainer.build.python.standins import usable

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Inventory, Package, Python

OLDEST_PYTHON: Final = (3, 8)
MANYLINUX: Final = (17, 28, *range(31, 41))
"""Minor versions of glibc 2 that uv knows as platforms."""

_MACHINES: Final = frozenset({"x86_64", "aarch64"})

_NEEDS_SOURCES: Final = re.compile(
    r"building from source is disabled|Building source distributions .*is disabled"
)
_NAMED: Final = re.compile(
    r"Wheels are required for `([^`]+)`|distributions for `([^`]+)`"
)
_YANKED: Final = re.compile(r"warning: (`.+` is yanked.*)")


@dataclass(frozen=True)
class Pin:
    """One package of a resolution.

    :param name: normalised
    :param version: empty where there is only a URL that does not tell
    :param hashes: of its files, ``sha256:…``, sorted
    :param url: of a package that is not from an index
    """

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    url: str = ""

    @property
    def line(self) -> str:
        """As a requirements file has it."""
        what = (
            f"{self.name} @ {self.url}" if self.url else f"{self.name}=={self.version}"
        )
        return " ".join([what, *(f"--hash={one}" for one in self.hashes)])


@dataclass(frozen=True)
class Conflict:
    """A package of the base that does not accept what replaces another one there.

    :param user: its name
    :param needs: the requirement that is not met
    :param found: what is there, with its version
    """

    user: str
    version: str
    needs: str
    found: str

    def __str__(self) -> str:
        user = f"{self.user} {self.version}"
        return f"{user} of the base image needs {self.needs}, and gets {self.found}"


def platform(inventory: Inventory) -> str | None:
    """What uv calls the image's platform; None where only uv inside can know."""
    python = inventory.python
    if python is None or inventory.machine not in _MACHINES:
        return None
    if python.implementation != "cpython" or python.free_threaded:
        return None
    if _numbers(python.version) < OLDEST_PYTHON:
        return None
    if inventory.libc == "musl":
        old = inventory.libc_version and _numbers(inventory.libc_version) < (1, 2)
        return None if old else f"{inventory.machine}-unknown-linux-musl"
    major, *rest = _numbers(inventory.libc_version) or (0,)
    known = [minor for minor in MANYLINUX if rest and minor <= rest[0]]
    if inventory.libc != "glibc" or major != 2 or not known:
        return None
    return f"{inventory.machine}-manylinux_2_{known[-1]}"


def sources(requirements: Iterable[str]) -> list[str]:
    """The requirements that name an archive of sources."""
    found = []
    for line in requirements:
        url = Requirement(line).url
        if url and not unquote(urlsplit(url).path).endswith(".whl"):
            found.append(line)
    return found


def parse_pins(text: str) -> tuple[Pin, ...]:
    """The packages of a requirements file that uv or :attr:`Pin.line` wrote.

    :raises ValueError: it has something else
    """
    return tuple(_pin(line) for line in _logical_lines(text))


def misnamed(pins: Iterable[Pin]) -> list[Pin]:
    """Those whose URL names a hash (``#sha256=…``) that their file does not have.

    Not every uv looks at it.
    """
    found = []
    for pin in pins:
        kind, _, value = urlsplit(pin.url).fragment.partition("=")
        known = [one for one in pin.hashes if one.startswith(f"{kind}:")]
        if value and known and f"{kind}:{value.lower()}" not in known:
            found.append(pin)
    return found


def with_hashes(
    pins: Iterable[Pin], hashes: Mapping[str, Sequence[str]]
) -> tuple[Pin, ...]:
    """The packages with the hashes that the user gave, where any were given.

    :raises LookupError: naming the packages that have none: as for pip, it is all
        or nothing (pip.pypa.io, "Secure installs")
    """
    found = tuple(pins)
    if not hashes:
        return found
    if lacking := sorted(pin.name for pin in found if pin.name not in hashes):
        raise LookupError(", ".join(lacking))
    return tuple(replace(pin, hashes=tuple(hashes[pin.name])) for pin in found)


def beyond(
    pins: Iterable[Pin], packages: Iterable[Package]
) -> tuple[tuple[Pin, ...], tuple[Pin, ...]]:
    """The pins that must be installed, and those that the base satisfies."""
    have = {one.name: Version(one.version) for one in usable(packages)}
    new: list[Pin] = []
    had: list[Pin] = []
    for pin in pins:
        same = not pin.url and have.get(pin.name) == Version(pin.version)
        (had if same else new).append(pin)
    return tuple(new), tuple(had)


def conflicts(
    inventory: Inventory, python: Python, new: Iterable[Pin]
) -> tuple[Conflict, ...]:
    """Who in the base does not accept what the new packages replace.

    What the base itself did not satisfy before is not counted.
    """
    came = {pin.name: pin.version for pin in new if pin.version}
    had = {one.name: one.version for one in usable(python.packages)}
    about = marker_environment(inventory, python)
    found = []
    for user in python.packages:
        if user.name in came:
            continue
        for need in _needs(user, about):
            name = canonicalize_name(need.name)
            if name not in came or name not in had:
                continue
            if _accepts(need, had[name]) and not _accepts(need, came[name]):
                needs = f"{name}{need.specifier}"
                got = f"{name} {came[name]}"
                found.append(Conflict(user.name, user.version, needs, got))
    return tuple(found)


def marker_environment(inventory: Inventory, python: Python) -> dict[str, str]:
    """The values of PEP 508's marker variables inside the image."""
    named = {"cpython": "CPython", "pypy": "PyPy"}
    return {
        "implementation_name": python.implementation,
        "implementation_version": python.version,
        "os_name": "posix",
        "platform_machine": inventory.machine,
        "platform_python_implementation": named.get(
            python.implementation, python.implementation
        ),
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python.version,
        "python_version": python.minor,
        "sys_platform": "linux",
        "extra": "",
    }


def lacks_wheels(lines: Iterable[str]) -> str | None:
    """What has no wheel, in uv's words; None where that is not what failed."""
    text = " ".join(" ".join(lines).split())  # uv may break lines anywhere
    if not _NEEDS_SOURCES.search(text):
        return None
    named = sorted({first or second for first, second in _NAMED.findall(text)})
    return ", ".join(named) or "a package"


def yanked(lines: Iterable[str]) -> list[str]:
    """What uv takes although it has been withdrawn, since it was asked for exactly."""
    return [found[1] for line in lines if (found := _YANKED.match(line))]


def with_versions(pins: Iterable[Pin], installed: Mapping[str, str]) -> list[Pin]:
    """The pins, with the versions that only installing has shown."""
    return [
        replace(pin, version=pin.version or installed.get(pin.name, "")) for pin in pins
    ]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _logical_lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        plain = re.sub(r"(^|\s)#.*$", "", line).strip()
        if plain and not plain.startswith("-"):
            yield plain


def _pin(line: str) -> Pin:
    what, *words = re.split(r"\s+--hash[= ]", line)
    try:
        requirement = Requirement(what.strip())
    except InvalidRequirement:
        raise ValueError(f"not a pinned requirement: {what:.80}") from None
    name = canonicalize_name(requirement.name)
    hashes = tuple(sorted(word.strip() for word in words))
    if requirement.url:
        return Pin(name, _version_in(requirement.url), hashes, requirement.url)
    exact = [
        one.version for one in requirement.specifier if one.operator in {"==", "==="}
    ]
    if len(exact) != 1 or len(requirement.specifier) != 1 or "*" in exact[0]:
        raise ValueError(f"not a pinned requirement: {what:.80}")
    return Pin(name, str(Version(exact[0])), hashes)


def _version_in(url: str) -> str:
    try:
        file = unquote(urlsplit(url).path.rpartition("/")[2])
        return str(parse_wheel_filename(file)[1])
    except InvalidWheelFilename:
        return ""


def _needs(package: Package, about: dict[str, str]) -> Iterator[Requirement]:
    for text in package.requires:
        try:
            need = Requirement(text)
            applies = need.marker is None or need.marker.evaluate(about)
        except (ValueError, KeyError):  # what distributions write is not always PEP 508
            continue
        if applies:
            yield need


def _accepts(need: Requirement, version: str) -> bool:
    return need.specifier.contains(version, prereleases=True)


def describe(pins: Sequence[Pin]) -> str:
    """For the log: ``numpy 2.1.0, pandas 2.3.0``."""
    return ", ".join(f"{pin.name} {pin.version or pin.url}" for pin in pins)
