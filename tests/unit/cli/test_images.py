"""The verbs ``build`` and ``images``, with a builder that needs no Apptainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from globus_compute_apptainer import images
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.cli import build
from globus_compute_apptainer.errors import BuildError, HostError

SPEC = '{"base_image": "python:3.11-slim", "pip": ["pandas"], "name": "ml"}'


def test_a_build_and_then_a_hit(call, builder) -> None:
    status, out, err = call("build", SPEC)
    assert status == 0
    assert out.startswith("built  ")
    assert "sha256:" in out
    status, out, err = call("build", "--json", SPEC)
    report = json.loads(out)
    assert (status, err) == (0, "")
    assert (report["cache"], report["seconds"], report["name"]) == ("hit", 0, "ml")
    assert Path(report["path"]).is_file()
    assert report["python_version"] == "3.11.2"
    assert len(builder.builds) == 1


def test_a_build_that_fails(call, builder) -> None:
    builder.error = BuildError("no such package", stage="pip", hint="spell it right")
    status, out, err = call("build", SPEC)
    assert (status, out) == (1, "")
    assert "hint: spell it right" in err
    status, out, err = call("build", "--json", SPEC)
    assert (status, out) == (1, "")
    assert json.loads(err)["error"]["stage"] == "pip"


def test_a_host_that_cannot_build(call, monkeypatch) -> None:
    def find(_: object) -> None:
        raise HostError("Apptainer is not installed here", code="apptainer-missing")

    monkeypatch.setattr(Apptainer, "find", find)
    status, _, err = call("build", SPEC)
    assert status == 3
    assert "apptainer-missing" in err


@pytest.mark.parametrize(
    "spec", ["{", "{}", '{"pipp": []}', '{"pip": ["a"], "post": ["true"]}', "nothing"]
)
def test_a_spec_that_is_no_good(call, builder, spec: str) -> None:
    status, out, err = call("build", spec)
    assert (status, out) == (2, "")
    assert "gc-apptainer: " in err
    assert builder.builds == []


def test_an_interrupted_build_is_cancelled(call, builder, monkeypatch) -> None:
    builder.gate.clear()
    closed = []

    def interrupt(*_: object) -> None:
        builder.begun.wait(30)
        raise KeyboardInterrupt

    class Service(images.ImageService):
        def close(self) -> None:
            super().close()
            closed.append(True)

    monkeypatch.setattr(images, "ImageService", Service)
    monkeypatch.setattr(build, "outcome", interrupt)
    status, out, _ = call("build", SPEC)
    assert (status, out, closed) == (130, "", [True])


def test_no_images(call, tmp_path: Path) -> None:
    assert call("images") == (0, f"no images in {tmp_path / 'cache'}\n", "")
    assert call("images", "--json") == (0, "[]\n", "")
    assert not (tmp_path / "cache").exists()


def test_images_are_listed_newest_first(call) -> None:
    call("build", SPEC)
    call("build", '{"python": "3.11"}')
    status, out, _ = call("images", "--json")
    listed = json.loads(out)
    assert status == 0
    assert sorted(image["name"] for image in listed) == ["", "ml"]
    created = [image["created"] for image in listed]
    assert created == sorted(created, reverse=True)
    _, table, _ = call("images")
    for image in listed:
        assert image["spec_digest"].removeprefix("sha256:")[:12] in table
        assert image["base"] in table


def test_a_long_reference_does_not_widen_the_table(call) -> None:
    name = f"python@sha256:{'0123456789abcdef' * 4}"
    call("build", json.dumps({"base_image": name}))
    assert " python@sha256:0123456789ab…  " in call("images")[1]


def test_a_cache_that_is_a_file(call, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    status, _, err = call("build", SPEC)
    assert status == 3
    assert "cache-unusable" in err
