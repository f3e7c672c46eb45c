"""What a ``uv.lock`` says is to be installed in one environment. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from globus_compute_apptainer.client.outcome import unreadable
from globus_compute_apptainer.client.pin import Pin
from globus_compute_apptainer.client.uv_settings import name_of

_VERSION: Final = 1
_HINT: Final = "uv export --format requirements.txt --no-hashes, and give that"

Package = Mapping[str, Any]


def from_uv_lock(
    document: Mapping[str, Any],
    where: str,
    environment: Mapping[str, str],
    extras: Collection[str] = (),
    groups: Collection[str] = (),
) -> Iterator[Pin]:
    """Every package that the project needs there, itself excepted.

    :raises SpecError: of another format, or of a workspace of several projects
    """
    if document.get("version") != _VERSION:
        raise unreadable(where, f"it has format {document.get('version')!r}", _HINT)
    if document.get("conflicts"):
        raise unreadable(where, "it has extras or groups that conflict", _HINT)
    try:
        graph = _Graph(document, where, environment)
        yield from graph.walk(extras, groups)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise unreadable(where, f"it is not as uv writes it: {error!r}") from None


class _Graph:
    """The packages of a lock file, and the way from the project to them."""

    def __init__(
        self, document: Mapping[str, Any], where: str, environment: Mapping[str, str]
    ) -> None:
        self._where, self._environment = where, environment
        self._manifest: Mapping[str, Any] = document.get("manifest", {})
        self._packages: list[Package] = document.get("package", [])

    def walk(self, extras: Collection[str], groups: Collection[str]) -> Iterator[Pin]:
        todo = deque(self._roots(extras, groups))
        seen: set[tuple[int, str]] = set()
        while todo:
            edge = todo.popleft()
            if not self._applies(edge):
                continue
            package = self._target(edge)
            for extra in ("", *edge.get("extra", ()), *edge.get("extras", ())):
                if (id(package), extra) in seen:
                    continue
                seen.add((id(package), extra))
                todo.extend(_edges(package, extra))
                if not extra:
                    yield _pin(package)

    def _roots(
        self, extras: Collection[str], groups: Collection[str]
    ) -> list[Mapping[str, Any]]:
        """The project's own dependencies."""
        if "requirements" in self._manifest:  # of a script
            return list(self._manifest["requirements"])
        root = self._project()
        edges = _edges(root, "")
        for extra in extras:
            edges += self._known(root, "optional-dependencies", extra)
        for group in groups:
            edges += self._known(root, "dev-dependencies", group)
        return edges

    def _project(self) -> Package:
        local = [p for p in self._packages if _is_project(p)]
        members = set(self._manifest.get("members", ()))
        found = [p for p in local if not members or p["name"] in members]
        if len(found) != 1:
            what = "no project" if not found else "a workspace of several projects"
            raise unreadable(self._where, f"it is of {what}", _HINT)
        return found[0]

    def _known(self, root: Package, kind: str, name: str) -> list[Mapping[str, Any]]:
        among: Mapping[str, Any] = root.get(kind, {})
        if name not in among:
            has = ", ".join(sorted(among)) or "none"
            raise unreadable(
                self._where, f"there is no {name!r} in it", f"it has: {has}"
            )
        return list(among[name])

    def _applies(self, edge: Mapping[str, Any]) -> bool:
        if "marker" not in edge:
            return True
        from packaging.markers import Marker  # noqa: PLC0415 - not every client needs it

        return bool(Marker(edge["marker"]).evaluate({**self._environment, "extra": ""}))

    def _target(self, edge: Mapping[str, Any]) -> Package:
        """The package that an edge leads to; it says more where there are several."""
        told = {k: edge[k] for k in ("name", "version", "source") if k in edge}
        found = [
            package
            for package in self._packages
            if all(package.get(key) == value for key, value in told.items())
            and self._is_for_here(package)
        ]
        if len(found) == 1:
            return found[0]
        reason = f"{edge['name']} is locked {len(found)} times"
        raise unreadable(self._where, reason, _HINT)

    def _is_for_here(self, package: Package) -> bool:
        markers = package.get("resolution-markers", ())
        return not markers or any(self._applies({"marker": m}) for m in markers)


def _edges(package: Package, extra: str) -> list[Mapping[str, Any]]:
    if not extra:
        return list(package.get("dependencies", ()))
    return list(package.get("optional-dependencies", {}).get(extra, ()))


def _is_project(package: Package) -> bool:
    return bool({"editable", "virtual"} & package["source"].keys())


def _pin(package: Package) -> Pin:
    source, name = package["source"], name_of(package["name"])
    if "registry" in source:
        return Pin(name, f"=={package['version']}")
    if "url" in source:
        return Pin(name, f" @ {source['url']}")
    kind, place = next(iter(source.items()))
    return Pin(name, "", f"comes from {kind} {str(place).partition('?')[0]}")
