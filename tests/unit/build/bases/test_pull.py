"""Reading compressed layers, and knowing which images can be read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from globus_compute_apptainer.build import squashfs
from globus_compute_apptainer.build.bases import pull
from globus_compute_apptainer.build.bases.tarstream import TarError

DIGEST = "sha256:" + "a" * 64
OCI = "application/vnd.oci.image."


def read(path: Path, *, compressed: bool = True) -> bytes:
    return b"".join(pull._ahead(pull._decompressed(path, gzip=compressed)))


@pytest.mark.parametrize("size", [0, 1, 700_000, 40_000_000])
def test_a_compressed_layer(tmp_path, size):
    path, data = tmp_path / "layer", (os.urandom(1000) * (size // 1000 + 1))[:size]
    path.write_bytes(gzip.compress(data, 1))
    assert read(path) == data
    path.write_bytes(data)
    assert read(path, compressed=False) == data


def test_a_layer_in_several_parts(tmp_path):
    """As parallel compressors write it, and with padding."""
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two") + b"\0" * 512)
    assert read(path) == b"onetwo"


@pytest.mark.parametrize("damage", [b"", b"not gzip at all", b"\x1f\x8b\x08\0"])
def test_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(os.urandom(1000))[:500] + damage)
    with pytest.raises(TarError, match="damaged"):
        read(path)
    path.write_bytes(gzip.compress(b"x") + (damage or b"\x1f"))
    with pytest.raises(TarError, match="damaged"):
        read(path)


def test_reading_can_be_given_up(tmp_path):
    """The thread that reads ahead ends with its reader."""
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(os.urandom(30_000_000), 1))
    pieces = pull._ahead(pull._decompressed(path, gzip=True))
    assert next(pieces)
    pieces.close()


def manifest(layer: str = "layer.v1.tar+gzip", **changes: object) -> dict[str, object]:
    return {
        "config": {"mediaType": f"{OCI}config.v1+json", "digest": DIGEST},
        "layers": [{"mediaType": f"{OCI}{layer}", "digest": DIGEST}],
        **changes,
    }


@pytest.mark.parametrize(
    ("told", "able"),
    [
        (manifest(), True),
        (manifest("layer.v1.tar"), True),
        (manifest("layer.v1.tar+zstd"), False),
        (manifest("layer.v1.tar+gzip+encrypted"), False),
        (manifest(layers=None), False),
        (manifest(layers=[1]), False),
        (manifest(config={"mediaType": "application/vnd.sylabs.sif.config"}), False),
        (manifest(layers=[{"mediaType": f"{OCI}layer.v1.tar", "digest": "x"}]), False),
        ({"schemaVersion": 1}, False),
    ],
)
def test_images_that_can_be_read(told, able, monkeypatch):
    monkeypatch.setattr(squashfs, "version", lambda: (4, 5))
    assert pull.can_pull(told) is able
    monkeypatch.setattr(squashfs, "version", lambda: (4, 4))
    assert not pull.can_pull(told)
