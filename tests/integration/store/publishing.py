"""What the scripts of these tests publish, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.manifest import Manifest

SIF = bytes(index.SIF_MAGIC_AT) + index.SIF_MAGIC
A, B = ("sha256:" + letter * 64 for letter in "ab")


def manifest(spec: str) -> Manifest:
    return Manifest(
        spec_digest=spec, image_digest="", size=0, spec={}, base="", base_digest=None,
        python=None, python_version=None, os="", packages=(), platform="linux/amd64",
        apptainer_version="", builder_version="", created="", build_seconds=0.0,
    )  # fmt: skip


def image_of(folder: Path, mebibytes: int) -> Path:
    """A file that passes for an image, of so many mebibytes."""
    path = folder / f"{mebibytes}.sif"
    path.write_bytes(SIF + os.urandom((mebibytes << 20) - len(SIF)))
    return path


def files_of(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
