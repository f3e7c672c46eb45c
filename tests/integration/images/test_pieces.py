"""An image is named by pieces, and those that were hashed before are not read again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.store.cache import Store

from .conftest import Endpoint

pytestmark = pytest.mark.apptainer

POST = {"post": ["echo made >/made"]}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_before(endpoint: Endpoint) -> dict[str, str]:
    """What lies on the shelves, by its digest."""
    layers = {sha256(path): "layer" for path in endpoint.top.rglob("layer.sqfs")}
    bases = [json.loads(path.read_text()) for path in endpoint.top.rglob("base.json")]
    return {**layers, **{told["system"]["sha256"]: "base" for told in bases}}


@pytest.mark.parametrize("more", [{}, POST], ids=["one layer", "two layers"])
def test_base_and_layers_are_pieces_of_a_layered_image(
    endpoint: Endpoint, more: dict[str, Any]
) -> None:
    image = endpoint.get({**endpoint.good, **more}).image
    before = made_before(endpoint)
    kinds = [before.get(digest, "new") for _, digest in image.manifest.pieces]
    assert [kind for kind in kinds if kind != "new"] == ["base"] + ["layer"] * (
        len(image.manifest.layers)
    )
    new = sum(
        size for size, digest in image.manifest.pieces if before.get(digest) is None
    )
    assert new < 128 * 1024
    assert Store(Path(endpoint.config()["cache_dir"])).examine(image).good


def test_a_flat_image_is_one_piece(endpoint: Endpoint) -> None:
    flat = {"build": {"strategy": "flat"}}
    image = endpoint.get({**endpoint.good, "post": ["true"]}, config=flat).image
    ((size, digest),) = image.manifest.pieces
    assert image.manifest.image_digest == f"sha256:{digest}"
    assert (size, digest) == (image.path.stat().st_size, sha256(image.path))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_piece_that_was_copied_wrong_is_noticed(
    endpoint: Endpoint, number: int
) -> None:
    """The digest tells what was to be there, not what was found."""
    spec = {**endpoint.good, "post": [f"echo {number} >/made"]}
    image = endpoint.get(spec).image
    at = sum(image.manifest.piece_sizes[:number]) + 7
    with image.path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    health = Store(Path(endpoint.config()["cache_dir"])).examine(image)
    assert health.image
