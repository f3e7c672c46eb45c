"""OCI layouts and archives of them, whole and damaged."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.bases.layout import Layout, unpacked
from globus_compute_apptainer.build.bases.registry import Name
from globus_compute_apptainer.errors import BuildError

TAG = "org.opencontainers.image.ref.name"


class Made:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.rows: list[dict[str, Any]] = []

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        (self.blobs / name).write_bytes(data)
        return f"sha256:{name}"

    def image(self, text: str) -> str:
        layer, config = self.put(text.encode()), self.put(b"{}")
        rows = [{"digest": layer, "mediaType": "l"}]
        told = {"config": {"digest": config}, "layers": rows}
        return self.put(json.dumps(told).encode())

    def index(self, **tags: str) -> None:
        rows = [{"digest": d, "annotations": {TAG: t}} for t, d in tags.items()]
        self.write(rows)

    def write(self, rows: list[dict[str, Any]]) -> None:
        (self.folder / "index.json").write_text(json.dumps({"manifests": rows}))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "oci")


@pytest.fixture
def layout(made: Made, make_job) -> Layout:
    return Layout(make_job(), made.folder)


def code(layout: Layout, tag: str = "") -> str:
    with pytest.raises(BuildError) as caught:
        layout.resolve(tag, "x86_64")
    return caught.value.code


def test_a_tag_names_an_image(made, layout):
    one, two = made.image("one"), made.image("two")
    made.index(one=one, two=two)
    assert layout.resolve("two", "x86_64").digest == two
    assert code(layout, "three") == "base-not-found"
    assert code(layout) == "base-not-found"  # which of them?
    made.index(one=one)
    assert layout.resolve("", "x86_64").digest == one


def test_an_index_in_it_is_followed(made, layout):
    one, two = made.image("one"), made.image("two")
    rows = [
        {"digest": one, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": two, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    top = made.put(json.dumps({"manifests": rows}).encode())
    made.index(x=top)
    found = layout.resolve("x", "x86_64")
    assert (found.digest, found.index_digest) == (two, top)
    made.write(rows)
    assert layout.resolve("", "aarch64").digest == one


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifests": []}', "\0"])
def test_no_layout(made, layout, text):
    assert code(layout) == "base-not-found"
    (made.folder / "index.json").write_text(text)
    assert code(layout) == "base-not-found"


@pytest.mark.parametrize("digest", ["sha256:../../x", "x", "sha256:" + "0" * 64])
def test_digests_that_lead_nowhere(made, layout, digest):
    made.index(x=digest)
    assert code(layout) == "base-not-found"


def test_damaged_blobs(made, layout, tmp_path):
    digest = made.image("one")
    made.index(x=digest)
    found = layout.resolve("x", "x86_64")
    layer = found.layers[0]
    (made.blobs / layer.partition(":")[2]).write_text("other")
    name = Name("", "local", digest)
    with pytest.raises(BuildError) as caught:
        layout.blob(name, layer, tmp_path / "copy", lambda: None, lambda _: None)
    assert caught.value.code == "digest-mismatch"
    (made.blobs / digest.partition(":")[2]).write_text("other")
    assert code(layout) == "digest-mismatch"


def test_one_image_of_several(made, layout, tmp_path, make_job):
    one, two = made.image("one"), made.image("two")
    made.index(one=one, two=two)
    found = layout.resolve("two", "x86_64")
    layout.single(found, Name("", "local", two), tmp_path / "single")
    alone = Layout(make_job(), tmp_path / "single")
    assert alone.resolve("", "x86_64") == found
    assert len(list((tmp_path / "single" / "blobs" / "sha256").iterdir())) == 3


def test_an_archive_gives_what_a_layout_has_and_nothing_else(made, tmp_path, make_job):
    digest = made.image("one")
    made.index(x=digest)
    (made.folder / "other").write_text("x")
    archive, target = tmp_path / "a.tar", tmp_path / "target"
    with tarfile.open(archive, "w") as tar:
        tar.add(made.folder, arcname=".")
        tar.add(made.folder / "other", arcname="../outside")
        link = tarfile.TarInfo("blobs/sha256/" + "f" * 64)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = unpacked(make_job(), archive, target).resolve("x", "x86_64")
    assert found.digest == digest
    assert sorted(path.name for path in target.iterdir()) == [
        "blobs",
        "index.json",
        "oci-layout",
    ]
    assert not (target / "blobs" / "sha256" / ("f" * 64)).exists()
    assert not (tmp_path / "outside").exists()


def test_a_file_that_is_no_archive(tmp_path, make_job):
    path = tmp_path / "a.tar"
    path.write_bytes(b"no")
    with pytest.raises(BuildError) as caught:
        unpacked(make_job(), path, tmp_path / "target")
    assert caught.value.code == "base-not-found"
