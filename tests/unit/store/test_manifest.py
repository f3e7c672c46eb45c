"""Manifests: exact in and out, strict about everything else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store.manifest import Manifest, platform_name

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats = st.floats(0, 1e6)
manifests = st.builds(
    Manifest,
    spec_digest=texts,
    image_digest=texts,
    size=st.integers(0, 2**60),
    spec=st.dictionaries(texts, st.one_of(texts, st.lists(texts), st.integers())),
    base=texts,
    base_digest=st.none() | texts,
    python=st.none() | texts,
    python_version=st.none() | texts,
    os=texts,
    packages=st.lists(texts).map(tuple),
    platform=texts,
    apptainer_version=texts,
    builder_version=texts,
    created=texts,
    build_seconds=floats,
    stage_seconds=st.dictionaries(texts, floats),
    log=texts,
    name=texts,
    strategy=st.sampled_from(["layered", "flat"]),
    reason=texts,
    layers=st.lists(st.dictionaries(texts, texts)).map(tuple),
    markers=st.lists(texts).map(tuple),
    start=st.none() | texts,
    lock=st.dictionaries(texts, texts),
    pieces=st.lists(st.tuples(st.integers(0, 2**60), texts)).map(tuple),
    format=st.just(3),
)


@given(manifests)
def test_what_is_written_is_read(manifest: Manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_it_is_for_people_too(manifest):
    text = manifest().to_json()
    assert text.endswith("}\n")
    assert '\n "base": "docker://python:3.11-slim",\n' in text


def broken(manifest, **changes) -> str:
    return json.dumps({**json.loads(manifest().to_json()), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": 4},
        {"format": "3"},
        {"size": "1"},
        {"size": True},
        {"size": None},
        {"packages": "a==1"},
        {"packages": [1]},
        {"layers": ["apt"]},
        {"markers": [1]},
        {"lock": []},
        {"pieces": [1]},
        {"pieces": [[1]]},
        {"pieces": [[-1, "a"]]},
        {"pieces": [["1", "a"]]},
        {"spec": []},
        {"os": None},
        {"unknown": 1},
    ],
)
def test_anything_else_is_refused(manifest, changes):
    with pytest.raises(StoreError) as caught:
        Manifest.from_json(broken(manifest, **changes))
    assert caught.value.code == "manifest-invalid"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "{}", '"x"'])
def test_no_manifest_at_all(text):
    with pytest.raises(StoreError):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Manifest)])
def test_every_field_must_be_there(manifest, name):
    raw = json.loads(manifest().to_json())
    del raw[name]
    with pytest.raises(StoreError):
        Manifest.from_json(json.dumps(raw))


def test_platform_is_written_as_registries_do():
    system, _, architecture = platform_name().partition("/")
    assert system == "linux"
    assert architecture not in {"", "x86_64", "aarch64"}
