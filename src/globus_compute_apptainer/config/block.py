"""One mapping of the configuration, whose keys are taken one by one.

Runs in the endpoint process while the configuration is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from globus_compute_apptainer.config.values import text, texts, wrong
from globus_compute_apptainer.errors import ConfigError

T = TypeVar("T")

_LATER = frozenset("registry prestart build.on policy.pip_indexes".split())


class Block:
    """A mapping whose keys are taken one by one; what is left is unknown."""

    def __init__(self, path: str, raw: object, environ: Mapping[str, str]) -> None:
        if not isinstance(raw, Mapping):
            raise wrong(path or "containers", raw, "a mapping")
        self._path, self._raw, self._environ = path, dict(raw), environ
        self._known: list[str] = []
        self._children: list[Block] = []

    def take(self, key: str, convert: Callable[[Any], T]) -> T | None:
        """The converted value; None where the key is absent or null."""
        self._known.append(key)
        value = self._raw.get(key)
        if value is None:
            return None
        try:
            return convert(value)
        except ConfigError as error:
            error.key = self._dotted(key) + error.key
            raise

    def block(self, key: str) -> Block:
        self._known.append(key)
        raw = self._raw.get(key)
        child = Block(self._dotted(key), {} if raw is None else raw, self._environ)
        self._children.append(child)
        return child

    def expand(self, written: str) -> Path:
        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self._environ:
                raise ConfigError(
                    f"the environment variable {name} is not set",
                    hint="set it in user_environment.yaml, or write the path out",
                )
            return self._environ[name]

        expanded = re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, written)
        path = Path(expanded).expanduser()
        if not path.is_absolute():
            raise ConfigError(f"{written!r} is not an absolute path")
        return path

    def path(self, value: object) -> Path:
        return self.expand(text(value))

    def overlay_path(self, value: object) -> Path:
        """A directory of files that Apptainer lays over images; its option for that
        knows no way to write these two characters."""
        path = self.path(value)
        if {":", ","} & set(str(path)):
            raise ConfigError(f"{str(path)!r} has a colon or a comma in it")
        return path

    def overlay_paths(self, value: object) -> tuple[Path, ...]:
        return tuple(self.overlay_path(one) for one in texts(value))

    def paths(self, value: object) -> tuple[str, ...]:
        return tuple(str(self.expand(one)) for one in texts(value))

    def program(self, value: object) -> str:
        """A name, for PATH to find, or a path."""
        given = text(value)
        return str(self.expand(given)) if re.search(r"[/~$]", given) else given

    def finish(self) -> None:
        for child in self._children:
            child.finish()
        for key in self._raw:
            if key not in self._known:
                raise self._unknown(str(key))

    def _unknown(self, key: str) -> ConfigError:
        dotted = self._dotted(key)
        if dotted in _LATER:
            return ConfigError(
                f"{dotted!r} is not supported by this version",
                hint="remove it; docs/changelog says which version brings it",
                key=dotted,
            )
        near = difflib.get_close_matches(key, self._known, n=1)
        return ConfigError(
            f"unknown key {dotted!r} in the containers block",
            hint="valid keys here: " + ", ".join(sorted(self._known)),
            key=dotted,
            nearest=near[0] if near else "",
        )

    def _dotted(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key
