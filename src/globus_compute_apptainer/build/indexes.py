"""Where this site's Python packages come from, as pip and uv are configured here.

Runs in the endpoint process. Reads pip's and uv's own configuration in the order
and places that their documentation gives; :mod:`.site` brings it into builds.
"""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TRUE: Final = frozenset({"1", "true", "yes", "on", "y", "t"})
_PIP_OPTIONS: Final = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "timeout",
    "proxy",
)
_UV_INDEX_VARIABLES: Final = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
)


@dataclass(frozen=True)
class Indexes:
    """Package indexes, neutral between pip and uv. URLs may hold credentials.

    :param default: URL or path of the main index; empty for PyPI
    :param extra: further indexes; uv's may read ``name=url``
    :param links: ``--find-links`` places
    :param merge: whether the newest version of any index wins (pip's rule), or the
        first index that has the package (uv's)
    :param timeout: seconds, as text; empty for the tool's default
    """

    default: str = ""
    extra: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    no_index: bool = False
    trusted: tuple[str, ...] = ()
    merge: bool = True
    timeout: str = ""
    proxy: str = ""
    certificates: str = ""


def from_pip(environ: Mapping[str, str], prefix: Path) -> Indexes:
    """pip's configuration: files, overridden by ``PIP_*`` variables.

    :param prefix: of the environment whose ``pip.conf`` is pip's "site" file
    """
    options: dict[str, str] = {}
    for path in _pip_files(environ, prefix):
        options.update(_pip_options(path))
    for name in (*_PIP_OPTIONS, "default-timeout"):
        variable = "PIP_" + name.upper().replace("-", "_")
        if variable in environ:
            options[name.removeprefix("default-")] = environ[variable]
    return Indexes(
        default=options.get("index-url", "").strip(),
        extra=tuple(options.get("extra-index-url", "").split()),
        links=tuple(options.get("find-links", "").split()),
        no_index=options.get("no-index", "").strip().lower() in _TRUE,
        trusted=tuple(options.get("trusted-host", "").split()),
        timeout=options.get("timeout", "").strip(),
        proxy=options.get("proxy", "").strip(),
        certificates=options.get("cert", "").strip(),
    )


def public() -> str:
    """The public index: pip's own default, which is uv's too; empty where there is no
    pip to ask."""
    try:
        return str(import_module("pip._internal.models.index").PyPI.simple_url)
    except (ImportError, AttributeError):  # it is not a public name of pip's
        return ""


def from_uv(environ: Mapping[str, str]) -> Indexes | None:
    """uv's index variables, or None where none is set (its file is apart)."""
    if not any(environ.get(name) for name in _UV_INDEX_VARIABLES):
        return None
    extra = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}"
    links = re.split(r"[,\s]+", environ.get("UV_FIND_LINKS", ""))
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL", "")
    return Indexes(
        default=default.strip(),
        extra=tuple(extra.split()),
        links=tuple(link for link in links if link),
        merge=False,
    )


def uv_file(environ: Mapping[str, str]) -> Path | None:
    """The ``uv.toml`` that uv would read here outside of any project, if any."""
    if environ.get("UV_NO_CONFIG", "").lower() in _TRUE:
        return None
    if named := environ.get("UV_CONFIG_FILE"):
        return _readable([Path(named)])
    home = _folder(environ, "XDG_CONFIG_HOME", ".config")
    folders = [home, *_folders(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg")]
    return _readable([*(f / "uv/uv.toml" for f in folders), Path("/etc/uv/uv.toml")])


def _pip_files(environ: Mapping[str, str], prefix: Path) -> list[Path]:
    """In the order in which pip reads them; a later one overrides."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == "/dev/null":
        return []
    folders = _folders(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg")
    files = [*(f / "pip/pip.conf" for f in reversed(folders)), Path("/etc/pip.conf")]
    if "HOME" in environ:
        files.append(Path(environ["HOME"], ".pip/pip.conf"))
    files.append(_folder(environ, "XDG_CONFIG_HOME", ".config") / "pip/pip.conf")
    files.append(prefix / "pip.conf")
    return [*files, Path(named)] if named else files


def _pip_options(path: Path) -> dict[str, str]:
    """Options of ``[global]``, overridden by ``[install]``; {} if unreadable."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, configparser.Error):
        return {}
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update(parser.items(section))
    plain = {name.lower().replace("_", "-"): text for name, text in found.items()}
    plain.setdefault("timeout", plain.pop("default-timeout", ""))
    return {name: plain[name] for name in _PIP_OPTIONS if plain.get(name)}


def _folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    return Path(environ.get(variable) or Path(environ.get("HOME", "/"), below_home))


def _folders(value: str) -> list[Path]:
    return [Path(item) for item in value.split(":") if item]


def _readable(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if os.access(path, os.R_OK)), None)
