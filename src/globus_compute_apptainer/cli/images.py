"""``gc-apptainer images``: what is in the cache. Reads only."""

from __future__ import annotations

import argparse
import dataclasses

from globus_compute_apptainer.cli import inputs, output
from globus_compute_apptainer.store.cache import Store, StoredImage

_HEADINGS = ("name", "spec", "base", "python", "size", "created", "packages")


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    found = sorted(
        Store(config.cache_dir).images(),
        key=lambda image: image.manifest.created,
        reverse=True,
    )
    if options.json:
        output.data([_fields(image) for image in found])
    elif not found:
        print(f"no images in {config.cache_dir}")
    else:
        output.table(_HEADINGS, map(_row, found), right=("size", "packages"))
    return 0


def _fields(image: StoredImage) -> dict[str, object]:
    return {**dataclasses.asdict(image.manifest), "path": str(image.path)}


def _row(image: StoredImage) -> tuple[str, ...]:
    manifest = image.manifest
    return (
        manifest.name or "-",
        output.short(manifest.spec_digest),
        _base(manifest.base),
        manifest.python_version or "-",
        output.size(manifest.size),
        manifest.created[:19].replace("T", " "),
        str(len(manifest.packages)),
    )


def _base(reference: str) -> str:
    """A digest cut short; it would make the table wide, and ``show`` has it whole."""
    name, at, digest = reference.partition("@sha256:")
    return f"{name}{at}{digest[:12]}{'…' if digest else ''}"
