"""Pipfile and Pipfile.lock, as pipenv writes them. Pure.

As in repo2docker, ``packages`` and ``dev-packages`` are installed, a lock file wins,
and paths are relative to the directory of the file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from globus_compute_apptainer.spec.items import MAX_ITEMS
from globus_compute_apptainer.spec.listed import Listed, Listing, toml
from globus_compute_apptainer.spec.refusal import Refusal, blame
from globus_compute_apptainer.spec.requirements import requirement

if TYPE_CHECKING:
    from globus_compute_apptainer.spec.tree import Tree

_PYTHON = re.compile(r"(\d+)(?:\.(\d+))?")
_INDEX = re.compile(r"https://(pypi\.org|pypi\.python\.org)/simple/?")
_VERSIONS = ("git", "hg", "svn", "bzr")
# Keys of a package that are markers (pipenv's "markers for one platform").
_MARKERS = (
    *("os_name", "sys_platform", "platform_machine", "platform_system"),
    *("platform_release", "platform_version", "platform_python_implementation"),
    *("python_version", "python_full_version"),
    *("implementation_name", "implementation_version"),
)


def pipfile(tree: Tree, path: str, where: str = "") -> tuple[Listed, str | None]:
    """What a Pipfile asks for, and the Python minor version it wants; None: any.

    :raises SpecError: naming the entry
    """
    label = f"{where}{path}"
    with blame(label):
        found = toml(tree.text(path))
        _check_sources(found.get("source"))
        requires = _table(found, "requires")
    reader = _Reader(tree, posixpath.dirname(path))
    for section in ("packages", "dev-packages"):
        reader.section(label, section, found)
    return reader.listing.listed(), _python(label, requires)


def pipfile_lock(tree: Tree, path: str, where: str = "") -> tuple[Listed, str | None]:
    """The same of a Pipfile.lock.

    :raises SpecError: naming the entry
    """
    label = f"{where}{path}"
    with blame(label):
        found = _json(tree.text(path))
        meta = _table(found, "_meta")
        _check_sources(meta.get("sources"))
        requires = _table(meta, "requires")
    reader = _Reader(tree, posixpath.dirname(path))
    for section in ("default", "develop"):
        reader.section(label, section, found)
    return reader.listing.listed(), _python(label, requires)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal("is not JSON") from None
    if not isinstance(found, dict):
        raise Refusal("is not a JSON object")
    return found


def _table(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = found.get(name, {})
    if not isinstance(table, dict):
        raise Refusal(f"has {name!r}, which is not a table")
    return table


def _check_sources(sources: object) -> None:
    for source in sources if isinstance(sources, list) else []:
        url = source.get("url") if isinstance(source, dict) else None
        if not isinstance(url, str) or not _INDEX.fullmatch(url):
            hint = "the endpoint's administrator chooses the package index"
            raise Refusal("has a source that is not PyPI", hint)


def _python(label: str, requires: Mapping[str, Any]) -> str | None:
    """The full version first, as in repo2docker."""
    for key in ("python_full_version", "python_version"):
        written = requires.get(key)
        found = _PYTHON.match(written) if isinstance(written, str) else None
        if found:
            if found[2]:
                return f"{found[1]}.{found[2]}"
            if found[1] != "3":
                raise Refusal("wants a Python that is too old").at(label, "")
    return None


class _Reader:
    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree, self._folder = tree, folder
        self.listing = Listing()

    def section(self, label: str, section: str, found: Mapping[str, Any]) -> None:
        with blame(f"{label}[{section}]"):
            packages = _table(found, section)
            if len(packages) > MAX_ITEMS:
                raise Refusal(f"has more than {MAX_ITEMS} entries")
        for name, wanted in packages.items():
            with blame(f"{label}[{section}].{name[:64]}"):
                self._package(name, wanted)

    def _package(self, name: str, wanted: object) -> None:
        if isinstance(wanted, str):
            self.listing.require(requirement(f"{name}{_version(wanted)}"), [])
            return
        if not isinstance(wanted, dict):
            raise Refusal("is neither a version nor a table")
        extras = _extras(wanted.get("extras", []))
        if any(key in wanted for key in _VERSIONS):
            hint = "give NAME @ https://HOST/ARCHIVE-OF-THE-COMMIT.tar.gz in `pip`"
            raise Refusal("comes from a version control system", hint)
        place = wanted.get("path") or wanted.get("file")
        if isinstance(place, str) and "://" not in place:
            path = posixpath.join(self._folder, place)
            self.listing.projects.add(self._tree.project(path + extras))
            return
        at = (
            f" @ {place}" if isinstance(place, str) else _version(wanted.get("version"))
        )
        marker = _marker(wanted)
        written = f"{name}{extras}{at}{' ; ' + marker if marker else ''}"
        hashes = wanted.get("hashes", [])
        if not isinstance(hashes, list) or not all(isinstance(h, str) for h in hashes):
            raise Refusal("has hashes that are not a list of texts")
        self.listing.require(requirement(written), hashes)


def _version(written: object) -> str:
    if written is None:
        return ""
    if not isinstance(written, str):
        raise Refusal("has a version that is not a text")
    return "" if written.strip() == "*" else written.strip()


def _extras(written: object) -> str:
    if not isinstance(written, list) or not all(isinstance(e, str) for e in written):
        raise Refusal("has extras that are not a list of texts")
    return f"[{','.join(written)}]" if written else ""


def _marker(wanted: Mapping[str, Any]) -> str:
    parts = []
    if isinstance(wanted.get("markers"), str):
        parts.append(f"({wanted['markers']})")
    parts += [f"{k} {wanted[k]}" for k in _MARKERS if isinstance(wanted.get(k), str)]
    whole = " and ".join(parts)
    return whole[1:-1] if len(parts) == 1 and whole.startswith("(") else whole
