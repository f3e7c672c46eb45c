"""Damage of every kind is found, and what is damaged goes to quarantine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from globus_compute_apptainer.store import integrity
from globus_compute_apptainer.store.index import BYTECODE, MANIFEST

A = "sha256:" + "a" * 64


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other(path: Path) -> None:
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "size": told["size"] + 1}))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("image.sif", flip, "its content is not what was published"),
    ("image.sif", lambda p: os.truncate(p, 100), "100 bytes instead of"),
    ("image.sif", lambda p: os.truncate(p, 0), "0 bytes instead of"),
    ("image.sif", lambda p: p.write_bytes(bytes(p.stat().st_size)), "does not begin"),
    ("image.sif", Path.unlink, "is missing"),
    (MANIFEST, Path.unlink, "is missing"),
    (MANIFEST, lambda p: os.truncate(p, 10), "its manifest is damaged"),
    (MANIFEST, lambda p: p.write_bytes(b"\xff"), "it cannot be read"),
    (MANIFEST, other, "its manifest is of another image"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES)
def test_damage_is_found(store, sif, manifest, name, damage, said) -> None:
    image = store.publish(sif, manifest("a"))
    assert store.examine(image).good
    damage(image.path.with_name(name))
    health = store.examine(image)
    assert said in health.image
    assert not health.good


def test_a_damaged_image_goes_to_quarantine_and_the_next_one_is_well(
    store, sif, manifest
):
    image = store.publish(sif, manifest("a"))
    assert store.quarantine(image)
    assert store.lookup(A) is None
    assert not store.quarantine(image), "it is gone already"
    again = store.publish(sif, manifest("a"))
    assert store.lookup(A) == again
    (kept,) = (store.top / "quarantine").iterdir()
    assert (kept / "image.sif").read_bytes() == sif.read_bytes()


def test_another_image_in_its_place_is_left_there(store, sif, manifest) -> None:
    old = store.publish(sif, manifest("a"))
    store.quarantine(old)
    new = store.publish(sif, manifest("a"))
    assert new.path == old.path
    assert not store.quarantine(old)
    assert store.lookup(A) == new


def test_a_few_are_kept(store, sif, manifest) -> None:
    for _ in range(integrity.KEPT + 2):
        assert store.quarantine(store.publish(sif, manifest("a")))
    assert len(list((store.top / "quarantine").iterdir())) == integrity.KEPT


@pytest.fixture
def complete(store, sif, manifest):
    image = store.publish(sif, manifest("a"))
    with store.workspace() as work:
        (work / BYTECODE).write_bytes(b"compiled")
        store.attach(image, work / BYTECODE)
    return image


def test_bytecode_is_looked_at_too(store, complete) -> None:
    assert store.examine(complete).good
    flip(complete.bytecode)
    health = store.examine(complete)
    assert (health.image, bool(health.bytecode)) == ("", True)
    integrity.drop_bytecode(complete)
    assert store.examine(complete).good
    assert complete.bytecode is None


@pytest.mark.parametrize("content", [None, b"", b"\xff"])
def test_bytecode_whose_digest_is_not_known_is_not_trusted(store, complete, content):
    told = complete.path.with_name(integrity.BYTECODE_DIGEST)
    told.unlink()
    if content is not None:
        told.write_bytes(content)
    assert store.examine(complete).bytecode
