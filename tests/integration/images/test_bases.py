"""What a tag means is asked once, and again only when somebody wants to know."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.errors import BuildError, PolicyError
from provision.oci import Layered, OwnRegistry

if TYPE_CHECKING:
    from .conftest import Endpoint

pytestmark = pytest.mark.apptainer


@pytest.fixture
def spec(own: OwnRegistry, layered: Layered, endpoint: Endpoint) -> dict[str, Any]:
    """On a base that is this test's own, by tag."""
    own.push(layered.layout, "made", "mine:1")
    endpoint.block["build"] = {"http_registries": [own.address]}
    return {"base_image": f"{own.address}/mine:1", "post": ["true"]}


def move(own: OwnRegistry, layered: Layered) -> None:
    """Let the tag mean another image."""
    layered.add(moved="yes\n")
    own.push(layered.layout, "made", "mine:1")


def made_earlier(endpoint: Endpoint, **ago: float) -> None:
    """Let all images, and all that is known of tags, be that much older."""
    passed = timedelta(**ago)
    for entry in (endpoint.top / "index").rglob("*.json"):
        told = json.loads(entry.read_text())
        made = datetime.fromisoformat(told["created"])
        entry.write_text(json.dumps({**told, "created": (made - passed).isoformat()}))
    for tag in (endpoint.top / "tags").glob("*.json"):
        told = json.loads(tag.read_text())
        if "asked_at" in told:
            told["asked_at"] -= passed.total_seconds()
            tag.write_text(json.dumps(told))


def test_an_image_is_sticky_though_its_tag_has_moved(
    endpoint: Endpoint, own: OwnRegistry, layered: Layered, spec: dict[str, Any]
) -> None:
    first = endpoint.get(spec)
    move(own, layered)
    again = endpoint.get(spec)
    assert (again.cache, again.image.path) == ("hit", first.image.path)
    # Within the time that a tag is believed, another spec gets the same base.
    other = endpoint.get({**spec, "post": ["true", "true"]}).image.manifest
    assert other.base_digest == first.image.manifest.base_digest


def test_a_fresh_image_has_the_new_base(
    endpoint: Endpoint, own: OwnRegistry, layered: Layered, spec: dict[str, Any]
) -> None:
    old = endpoint.get(spec).image
    move(own, layered)
    new = endpoint.get(spec, fresh=True)
    assert new.cache == "built"
    assert new.image.manifest.base_digest != old.manifest.base_digest
    assert endpoint.inside(new.image.path, "cat", "/moved") == "yes"
    assert endpoint.get(spec).image.path == new.image.path  # and stays
    assert old.path.exists()  # somebody may run it still


def test_refresh_makes_it_anew_once_it_is_too_old(
    endpoint: Endpoint, own: OwnRegistry, layered: Layered, spec: dict[str, Any]
) -> None:
    old = endpoint.get(spec).image
    move(own, layered)
    spec["refresh"] = "1d"
    made_earlier(endpoint, hours=23)
    assert endpoint.get(spec).cache == "hit"
    made_earlier(endpoint, hours=2)
    new = endpoint.get(spec)
    assert new.cache == "built"
    assert new.image.manifest.base_digest != old.manifest.base_digest
    assert endpoint.get(spec).cache == "hit"


def test_a_known_base_outlives_its_registry(
    endpoint: Endpoint, own: OwnRegistry, spec: dict[str, Any]
) -> None:
    first = endpoint.get(spec).image
    own.stop()
    made_earlier(endpoint, days=3)
    other = endpoint.get({**spec, "post": ["touch /other"]})
    assert other.cache == "built"
    assert other.image.manifest.base_digest == first.manifest.base_digest
    error = endpoint.error(spec, fresh=True)
    assert isinstance(error, BuildError)
    assert (error.code, error.stage) == ("registry-unreachable", "resolve")
    assert endpoint.get(spec).image.path == first.path


def test_a_policy_that_requires_digests(
    endpoint: Endpoint, own: OwnRegistry, spec: dict[str, Any]
) -> None:
    config = {"policy": {"require_digest": True}}
    error = endpoint.error(spec, config=config)
    assert isinstance(error, PolicyError)
    assert "digest" in error.render()
    digest = endpoint.get(spec).image.manifest.base_digest
    exact = {**spec, "base_image": f"{own.address}/mine@{digest}"}
    ready = endpoint.get(exact, config=config)
    assert ready.image.manifest.base_digest == digest


def test_an_image_costs_a_copy_of_its_base_and_the_delta(endpoint: Endpoint) -> None:
    endpoint.block.clear()
    image = endpoint.get(endpoint.good).image
    bases = [path.stat().st_size for path in (endpoint.top / "bases").rglob("*.sif")]
    delta = sum(layer["size"] for layer in image.manifest.layers)
    more = [image.manifest.size - base - delta for base in bases]
    assert any(0 <= rest < 64 * 1024 for rest in more), more
