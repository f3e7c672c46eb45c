"""Stand-ins: how uv is told what a base image already has. Pure.

Of every package of the base, uv is told twice: its version is preferred, and a
*stand-in* makes that version one that can be had, even where no index holds it (a
vendor's build, a local one). So what the base has is kept wherever the requirements
allow it, and never installed again: what resolves to a version of the base is left out.

A stand-in is a wheel with a name, a version and nothing else: no files, and no
dependencies, since the base has them. Its tag is the last that uv would choose, so that
where an index has a wheel of the same version, the true dependencies count.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Package

_TAG: Final = "py30-none-any"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_EXTRA: Final = re.compile(r"""\bextra\s*==\s*['"]([A-Za-z0-9._-]+)['"]""")


def preferences(packages: Iterable[Package]) -> str:
    """What the base has, as a requirements file: uv prefers what its output names."""
    return "".join(f"{one.name}=={one.version}\n" for one in usable(packages))


def stand_ins(packages: Iterable[Package]) -> dict[str, bytes]:
    """File name → content of the stand-ins of what the base has."""
    found = {}
    for one in usable(packages):
        name = one.name.replace("-", "_")
        version = str(Version(one.version))
        file = f"{name}-{version}-{_TAG}.whl"
        found[file] = _wheel(f"{name}-{version}.dist-info", _metadata(one, version))
    return found


def usable(packages: Iterable[Package]) -> Iterator[Package]:
    """Those with names and versions that uv understands. A base may say anything."""
    for one in packages:
        try:
            Version(one.version)
        except InvalidVersion:
            continue
        if _NAME.fullmatch(one.name):
            yield one


def _metadata(package: Package, version: str) -> str:
    """Its extras need what they need; else it needs nothing."""
    optional = [one for one in package.requires if _is_optional(one)]
    extras = dict.fromkeys(name for one in optional for name in _EXTRA.findall(one))
    rows = ["Metadata-Version: 2.1", f"Name: {package.name}", f"Version: {version}"]
    rows += [f"Provides-Extra: {name}" for name in extras]
    rows += [f"Requires-Dist: {one}" for one in optional]
    return "\n".join([*rows, ""])


def _is_optional(text: str) -> bool:
    try:
        need = Requirement(text)
    except InvalidRequirement:
        return False
    one_line = text.isprintable()
    return one_line and need.url is None and _EXTRA.search(text) is not None


def _wheel(info: str, metadata: str) -> bytes:
    about = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
    files = {"METADATA": metadata, "WHEEL": about}
    files["RECORD"] = "".join(f"{info}/{name},,\n" for name in [*files, "RECORD"])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(f"{info}/{name}"), text)
    return written.getvalue()
