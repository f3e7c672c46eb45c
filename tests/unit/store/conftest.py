"""A store in an empty directory, and manifests for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.manifest import Manifest

SIF = b"\0" * index.SIF_MAGIC_AT + index.SIF_MAGIC
"""What an image begins with."""


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    """``manifest("a")`` is of the spec whose digest is all ``a``."""

    def make(letter: str = "a", **changes) -> Manifest:
        fields = {
            "spec_digest": digest(letter),
            "image_digest": "",
            "size": 0,
            "spec": {"format": 1, "pip": ["a"]},
            "base": "docker://python:3.11-slim",
            "base_digest": None,
            "python": "/usr/bin/python3",
            "python_version": "3.11.2",
            "os": "Debian GNU/Linux 12 (bookworm)",
            "packages": ("a==1", "b==2"),
            "platform": "linux/amd64",
            "apptainer_version": "1.4.5",
            "builder_version": "0.1.0",
            "created": "2026-01-02T03:04:05+00:00",
            "build_seconds": 1.5,
            "stage_seconds": {"pull": 1.0, "pip": 0.5},
            "log": "/logs/x.log",
            "name": "mine",
            **changes,
        }
        return Manifest(**fields)

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root, platform="linux/amd64")


@pytest.fixture
def sif(tmp_path: Path) -> Path:
    path = tmp_path / "image.sif"
    path.write_bytes(SIF + b"an image" * 1000)
    return path
