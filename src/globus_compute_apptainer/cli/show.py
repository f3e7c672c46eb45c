"""``gc-apptainer show IMAGE``: what is known of one image. Reads only."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from globus_compute_apptainer.build.order import STAGES
from globus_compute_apptainer.cli import inputs, output, stored
from globus_compute_apptainer.store.cache import StoredImage
from globus_compute_apptainer.store.manifest import Manifest

_HIDDEN: Final = ("format", "agent", "base_image")
_AGES: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"))


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    image = stored.find(options.image, config)
    if options.json:
        path = {"path": str(image.path)}
        output.data({**dataclasses.asdict(image.manifest), **path})
        return 0
    for line in describe(image, datetime.now(timezone.utc)):
        print(line)
    return 0


def describe(image: StoredImage, now: datetime) -> Iterator[str]:
    """All of it, in lines for people."""
    manifest = image.manifest
    yield from _head(image, now)
    yield from _part("asked for", _asked(manifest.spec))
    yield from _part("layers", _layers(manifest))
    yield from _part("installed", _installed(manifest.lock))
    total = f"{manifest.build_seconds:.1f} s in all"
    spent = manifest.stage_seconds
    stages = [(name, f"{spent[name]:.1f} s") for name in sorted(spent, key=_place)]
    yield from _part(f"built in {total}", stages)
    tools = manifest.lock.get("tools", {})
    tools = {"globus-compute-apptainer": manifest.builder_version, **tools}
    yield from _part("tools", [(name, str(version)) for name, version in tools.items()])


def _place(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _head(image: StoredImage, now: datetime) -> Iterator[str]:
    manifest = image.manifest
    base = manifest.lock.get("base", {})
    resolved = age(str(base.get("resolved_at", "")), now)
    flat = f"flat, since {manifest.reason}" if manifest.reason else manifest.strategy
    python = f"{manifest.python_version} at {manifest.python}"
    bytecode = " and its bytecode beside it" if image.bytecode else ""
    rows = {
        "name": manifest.name,
        "image": manifest.image_digest,
        "spec": manifest.spec_digest,
        "file": f"{image.path}{bytecode}",
        "size": output.size(manifest.size),
        "created": f"{manifest.created}{_in_brackets(age(manifest.created, now))}",
        "base": manifest.base,
        "base digest": f"{manifest.base_digest or 'not known'}"
        + (f" (resolved {resolved})" if resolved else ""),
        "system": f"{manifest.os or 'not known'}, {manifest.platform}",
        "python": python if manifest.python else "none",
        "way": flat,
        "start": manifest.start or "",
        "log": manifest.log,
    }
    for name, value in rows.items():
        if value:
            yield f"{name:12}{value}"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def age(moment: str, now: datetime) -> str:
    """How long ago a moment was, in words; empty where it is not known."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    seconds = (now - then).total_seconds()
    for size, unit in _AGES:
        count = int(seconds / size)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _part(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        for name, value in rows:
            yield f"  {name:12}{' ' if len(name) > 11 else ''}{value}".rstrip()


def _asked(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    base = f"{spec.get('agent', '')}://{spec.get('base_image', '')}"
    return [
        ("base_image", base),
        *((name, _short(spec[name])) for name in sorted(spec) if name not in _HIDDEN),
    ]


def _short(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        lines = [item.partition("\n")[0] for item in value]
        return ", ".join(lines)
    if isinstance(value, list):  # (name, content), of files and variables
        return ", ".join(str(item[0]) for item in value if item)
    return value if isinstance(value, str) else json.dumps(value)


def _layers(manifest: Manifest) -> list[tuple[str, str]]:
    counts = {kind: len(_packages(manifest.lock, kind)) for kind in manifest.lock}
    rows = []
    for layer in manifest.layers:
        kind = str(layer.get("kind", ""))
        size = layer.get("size")
        words = [output.short(str(layer.get("key", "")))]
        words += [output.size(size)] if isinstance(size, int) else []
        words += [_counted(counts[kind])] if counts.get(kind) else []
        rows.append((kind, "  ".join(word for word in words if word)))
    return rows


def _counted(packages: int) -> str:
    return f"{packages} package{'s' if packages > 1 else ''}"


def _installed(lock: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for kind in ("apt", "conda", "pip"):
        for number, one in enumerate(_packages(lock, kind)):
            version = f"{one.get('name')} {one.get('version')}"
            build = f" {one['build']}" if kind == "conda" and "build" in one else ""
            rows.append(("" if number else kind, version + build))
    payload = lock.get("payload") or {}
    if payload:
        told = payload.get("commit") or payload.get("sha256") or ""
        rows.append(("payload", f"{payload.get('url', 'files of the spec')} {told}"))
    return rows


def _packages(lock: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    part = lock.get(kind)
    found = part.get("packages", []) if isinstance(part, dict) else []
    return [one for one in found if isinstance(one, dict)]
