"""What an index makes of damaged and foreign files: nothing, with a note."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from globus_compute_apptainer.store import index
from globus_compute_apptainer.store.cache import Store

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def entry(root: Path, letter: str = "a") -> Path:
    return root / f"v2/index/linux-amd64/{letter * 2}/{letter * 64}.json"


def test_an_image_that_does_not_begin_as_a_sif_counts_as_absent(
    store, root, sif, manifest, caplog
):
    path = store.publish(sif, manifest("a")).path
    size = path.stat().st_size
    path.write_bytes(bytes(size))  # as after a crash of the machine
    assert store.lookup(A) is None
    assert Store(root, platform="linux/amd64").lookup(A) is None
    assert "it is no SIF" in caplog.text


def test_the_beginning_is_read_again_when_the_file_changes(store, sif, manifest):
    path = store.publish(sif, manifest("a")).path
    assert store.lookup(A)
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, (1, 1))
    assert store.lookup(A) is None


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1},
        {"image_digest": B},
        {"spec_digest": B},
        {"image_digest": "sha256:../../x"},
        {"format": 1},
        {"format": 4},
    ],
)
def test_an_entry_that_does_not_match_counts_as_absent(
    store, root, sif, manifest, change
):
    store.publish(sif, manifest("a"))
    path = entry(root)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert store.lookup(A) is None
    assert list(store.images()) == []
    again = store.publish(sif, manifest("a"))
    assert store.lookup(A) == again


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", bytes(4096)])
def test_a_damaged_entry_is_replaced_by_the_next_build(
    store, root, sif, manifest, content, caplog
):
    store.publish(sif, manifest("a"))
    entry(root).write_bytes(content)
    assert store.lookup(A) is None
    assert "counts as absent" in caplog.text
    store.publish(sif, manifest("a"))
    assert store.lookup(A)


def test_files_of_other_names_are_no_entries(store, root, sif, manifest) -> None:
    store.publish(sif, manifest("a"))
    for name in ("x.json", ".hidden.json", "a" * 64 + ".json.tmp"):
        (entry(root).parent / name).write_text("{}")
    assert [image.manifest.spec_digest for image in store.images()] == [A]


def test_one_process_keeps_so_many_manifests_in_memory(
    store, sif, manifest, monkeypatch
):
    monkeypatch.setattr(index, "REMEMBERED", 2)
    for letter in "abcd":
        store.publish(sif, manifest(letter))
        store.lookup("sha256:" + letter * 64)
    assert len(store._index._known) == 2


def test_a_platform_sees_its_own_entries_only(store, root, sif, manifest) -> None:
    store.publish(sif, manifest("a"))
    assert Store(root, platform="linux/arm64").lookup(A) is None
