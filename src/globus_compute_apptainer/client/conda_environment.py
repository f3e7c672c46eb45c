"""The conda packages of a prefix, as conda itself wrote them down.

Runs where the SDK runs; needs no conda.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

_HOSTS: Final = re.compile(r"https?://conda\.anaconda\.org/(?P<name>.+)")
_TOKEN: Final = re.compile(r"/t/[^/]+")
_SUBDIR: Final = re.compile(r"/(noarch|(?:linux|osx|win|emscripten|wasi)-[a-z0-9]+)$")


def packages(prefix: Path, left_out: Collection[str] = ()) -> dict[str, Any] | None:
    """The field ``conda`` for a prefix; None where it is no conda environment.

    On Linux every package with version and build, elsewhere (builds for another
    system exist there only) those that somebody asked for, with their versions.

    :param left_out: names of packages
    """
    if not (prefix / "conda-meta" / "history").exists():
        return None
    channels: dict[str, None] = {}
    specs = []
    for record in _records(prefix):
        if record["name"] in left_out:
            continue
        if sys.platform == "linux":
            specs.append("{name}={version}={build}".format_map(record))
        elif record.get("requested_spec") or record["name"] == "python":
            specs.append("{name}={version}".format_map(record))
        else:
            continue
        if channel := channel_of(str(record.get("channel", ""))):
            channels[channel] = None
    return {"channels": list(channels), "dependencies": sorted(specs)}


def channel_of(url: str) -> str:
    """A channel as people name it, without system and access token."""
    bare = _SUBDIR.sub("", _TOKEN.sub("", url.rstrip("/")))
    found = _HOSTS.fullmatch(bare)
    return found["name"] if found else bare


def _records(prefix: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        needed = ("name", "version", "build")
        if isinstance(record, dict) and all(record.get(key) for key in needed):
            yield record
