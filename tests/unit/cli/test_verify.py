"""The verb ``verify``: damaged images are found, told and taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SPEC = '{"base_image": "python:3.11-slim", "pip": ["pandas"], "name": "ml"}'


@pytest.fixture
def image(call, builder) -> Path:
    return Path(json.loads(call("build", "--json", SPEC)[1])["path"])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("arguments", [["ml"], ["--all"], [SPEC]])
def test_a_good_image(call, image, arguments) -> None:
    status, out, _ = call("verify", *arguments)
    assert status == 0
    assert out.splitlines() == [f"ok       {image}", "1 images read, 0 damaged"]


def test_a_damaged_image_is_moved_away_and_built_anew(call, image, builder) -> None:
    flip(image)
    status, out, _ = call("verify", "--all", "--json")
    assert status == 1
    (told,) = json.loads(out)
    assert (told["image"], told["name"]) == (str(image), "ml")
    assert "content is not what was published" in told["damage"]
    assert not image.exists()
    assert call("verify", "--all", "--json")[:2] == (0, "[]\n")
    report = json.loads(call("build", "--json", SPEC)[1])
    assert report["cache"] == "built"
    assert len(builder.builds) == 2


@pytest.mark.parametrize("arguments", [[], ["ml", "--all"]])
def test_one_image_or_all(call, image, arguments) -> None:
    status, _, err = call("verify", *arguments)
    assert status == 2
    assert "--all" in err


def test_an_image_that_is_not_there(call) -> None:
    status, _, err = call("verify", "nothing")
    assert status == 1
    assert "image-not-built" in err
