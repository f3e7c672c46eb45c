"""From what a client attached to what is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests, split
from globus_compute_apptainer.errors import PolicyError, SpecError

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}


def requests(block: dict[str, Any] | None = None) -> Requests:
    return Requests(
        ContainersConfig.parse({"cache_dir": "/c", **(block or {})}), "3.12"
    )


def test_splitting_leaves_the_argument_alone() -> None:
    attached = {"container": SPEC, "priority": 1}
    assert split(attached) == (SPEC, {"priority": 1})
    assert attached == {"container": SPEC, "priority": 1}


@pytest.mark.parametrize("odd", [None, [], "x", 3])
def test_what_is_not_a_mapping_is_left_for_upstream_to_judge(odd: object) -> None:
    assert split(odd) == (None, odd)


def test_a_spec_without_base_gets_the_clients_python() -> None:
    wanted = requests().wanted({"pip": ["pandas"]})
    assert wanted is not None
    assert wanted.image.base_image == "python:3.12-slim"


def test_a_spec_seen_before_is_not_read_again() -> None:
    known = requests()
    first = known.wanted(SPEC)
    assert known.wanted(dict(reversed(SPEC.items()))) == first


def test_the_memory_of_specs_is_bounded() -> None:
    known = requests()
    for number in range(1100):
        known.wanted({"pip": [f"p{number}"]})
    assert len(known._seen) == 1024


def test_errors_are_not_remembered_as_answers() -> None:
    known = requests()
    for _ in range(2):
        with pytest.raises(PolicyError):
            known.wanted({**SPEC, "post": ["id"]})


def test_names_are_the_admins_and_free_of_policy() -> None:
    block = {"images": {"ml": {**SPEC, "post": ["id"]}}, "policy": {"base_images": []}}
    wanted = requests(block).wanted("ml")
    assert wanted is not None
    assert wanted.name == "ml"
    with pytest.raises(SpecError) as caught:
        requests(block).wanted("lm")
    assert caught.value.code == "image-unknown"


def test_without_a_default_a_task_stays_on_the_host() -> None:
    assert requests().wanted(None) is None


def test_the_endpoints_own_default_base_is_always_allowed() -> None:
    narrow = {"policy": {"base_images": ["docker://rocker/*"], "require_digest": True}}
    assert requests(narrow).wanted({"pip": ["pandas"]}) is not None
    with pytest.raises(PolicyError):
        requests(narrow).wanted(SPEC)
