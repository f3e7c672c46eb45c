"""Configurations and specs, wherever the command line says they are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from globus_compute_apptainer.cli import inputs
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.errors import ConfigError, PolicyError, SpecError

CONFIG = ContainersConfig.parse({"cache_dir": "/c", "images": {"ml": {"pip": ["a"]}}})
SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
YAML = "base_image: python:3.11-slim\npip: [pandas]\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("spec.json", json.dumps(SPEC)), ("spec.yaml", YAML), ("spec", json.dumps(SPEC))],
)
def test_a_spec_in_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert inputs.spec(str(tmp_path / name), CONFIG) == SPEC


@pytest.mark.parametrize("text", [json.dumps(SPEC), YAML])
def test_a_spec_on_standard_input(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert inputs.spec("-", CONFIG) == SPEC


def test_a_spec_in_the_argument() -> None:
    assert inputs.spec(f" {json.dumps(SPEC)}", CONFIG) == SPEC


def test_an_image_that_the_configuration_names(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert inputs.spec("ml", CONFIG) == "ml"
    Path("ml").write_text(YAML)
    assert inputs.spec("ml", CONFIG) == SPEC


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("{bad", "is not JSON"),
        ("/no/such/spec.json", "No such file"),
        ("/", "none of the files"),
        ("m1", "No such file"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_spec_that_cannot_be_read(argument: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        inputs.spec(argument, CONFIG)
    assert caught.value.code == "spec-unreadable"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.yaml", b"a: [b"),
        ("a.yaml", b"\xff\xfe"),
        ("a.yaml", b"\0"),
    ],
)
def test_a_spec_file_that_is_neither(tmp_path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError) as caught:
        inputs.spec(str(tmp_path / name), CONFIG)
    assert caught.value.code == "spec-unreadable"
    assert "\n" not in caught.value.message


def test_what_a_spec_asks_for_is_checked_as_for_a_task() -> None:
    wanted = inputs.wanted({**SPEC, "name": "n"}, CONFIG)
    assert (wanted.image.base_image, wanted.name) == ("python:3.11-slim", "n")
    assert inputs.wanted("ml", CONFIG).name == "ml"
    with pytest.raises(SpecError):
        inputs.wanted({"pipp": []}, CONFIG)
    with pytest.raises(PolicyError):
        inputs.wanted({**SPEC, "post": ["true"]}, CONFIG)
    with pytest.raises(SpecError):
        inputs.wanted(None, CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "containers: {cache_dir: /x, build: {timeout: 90s}}",
        "engine: {type: ApptainerEngine, provider: {type: SlurmProvider},"
        " containers: {cache_dir: /x, build: {timeout: 90s}}}\nidle_heartbeats_soft: 1",
    ],
)
def test_a_configuration_s_two_places(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    found = inputs.settings(str(tmp_path / "config.yaml"), None)
    assert found.config.cache_dir == Path("/x")
    assert found.config.build.timeout == 90
    assert found.provider == ("SlurmProvider" if "engine" in text else "")
    assert ContainersConfig.parse(found.raw) == found.config


def test_an_engine_without_a_block_has_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("engine: {type: ApptainerEngine}")
    found = inputs.settings(str(tmp_path / "config.yaml"), "/y")
    assert found.config == ContainersConfig.parse({"cache_dir": "/y"})


def test_the_cache_can_be_named_on_the_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = inputs.settings(None, "cache")
    assert found.config.cache_dir == tmp_path / "cache"
    assert ContainersConfig.parse(found.raw) == found.config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("display_name: x", "no containers: block"),
        ("containers: [a]", "not a mapping"),
        ("- a", "not a mapping"),
        ("engine: x", "no containers: block"),
        ("containers: {cach_dir: /x}", "unknown key"),
        ("engine: {containers: {{ block }}}", "cannot be rendered|not YAML|unhashable"),
        ("a: [", "not YAML"),
    ],
)
def test_a_configuration_that_is_no_good(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        inputs.settings(str(tmp_path / "config.yaml"), None)


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        inputs.settings("/no/such/config.yaml", None)
