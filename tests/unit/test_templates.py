"""Every endpoint template renders, by upstream's own code, to a valid configuration."""

from __future__ import annotations

import json
import pwd
import shlex
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest
import yaml
from globus_compute_endpoint.endpoint.config.utils import render_config_user_template
from globus_compute_endpoint.engines import GlobusComputeEngine
from parsl.providers import LocalProvider

from globus_compute_apptainer.cli import inputs, main
from globus_compute_apptainer.config import ContainersConfig

TEMPLATES = Path(__file__).parents[2] / "endpoint_templates"
TEMPLATE = "user_config_template.yaml.j2"
ALL = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir())
STOCK = "stock-engine"
OURS = [name for name in ALL if name != STOCK]


def render(name: str, options: dict[str, Any]) -> dict[str, Any]:
    folder = TEMPLATES / name
    identity = mock.Mock(local_user_record=pwd.getpwuid(0))
    text = render_config_user_template(
        mock.Mock(),
        (folder / TEMPLATE).read_text(),
        folder / TEMPLATE,
        identity,
        json.loads((folder / "user_config_schema.json").read_text()),
        options,
        {},
    )
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", OURS)
def test_it_renders_to_a_block_that_parses(name: str) -> None:
    engine = render(name, {})["engine"]
    assert engine["type"] == "ApptainerEngine"
    assert ContainersConfig.parse(engine["containers"]).default_container is None


@pytest.mark.parametrize("name", ALL)
def test_the_environment_file_is_yaml(name: str) -> None:
    text = (TEMPLATES / name / "user_environment.yaml").read_text()
    assert yaml.safe_load(text) in (None, {})


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "container",
    [
        {"base_image": "python:3.11-slim", "pip": ["pandas", "numpy>=1.26"]},
        {"pip": ['x\n  policy: {allow_post: true} #"'], "env": {'a": 1}\n': "b"}},
        {"env": {"A": 'it\'s "quoted", {braced}, [x]: # y\nnext'}},
        {"pip": [], "gpu": None, "n": 1.5, "b": True},
        {"conda": "dependencies:\n- python=3.11\n- pip: [six]\n", "refresh": "7d"},
        {"conda": {"channels": ["a"], "dependencies": ["b", {"pip": ["c"]}]}},
        {"payload_url": "https://h/r.git#v1", "files": {"postBuild": "#!/bin/sh\n:\n"}},
    ],
)
def test_a_clients_spec_arrives_unchanged_and_cannot_leave_its_place(
    name: str, container: dict[str, Any]
) -> None:
    plain = render(name, {})
    rendered = render(name, {"container": container})
    assert rendered["engine"]["containers"].pop("default_container") == container
    assert rendered == plain


@pytest.mark.parametrize("name", ALL)
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        render(name, {"contianer": {"pip": ["x"]}})


def stock_command(options: dict[str, Any]) -> list[str]:
    """What the stock engine makes of the template, before Parsl fills it in."""
    block = render(STOCK, options)["engine"]
    assert block.pop("type") == "GlobusComputeEngine"
    engine = GlobusComputeEngine(**{**block, "provider": LocalProvider()})
    engine.run_dir = "/run/dir"
    return shlex.split(engine.containerized_launch_cmd())


def test_the_stock_engine_starts_its_workers_through_run_worker() -> None:
    command = stock_command({"image": "ml-2.1"})
    cut = command.index("--")
    assert command[cut + 1 : cut + 3] == ["globus-compute-endpoint", "python-exec"]
    options = main._parse(command[1:])
    assert command[0] == "gc-apptainer" and options.verb == "run-worker"
    assert (options.image, options.bind) == ("ml-2.1", ["/run/dir"])
    assert main._parse(stock_command({})[1:]).image == "default"


def test_the_stock_engines_images_parse_and_have_a_worker() -> None:
    config = inputs.settings(str(TEMPLATES / STOCK / "containers.yaml"), None).config
    assert config.images["default"].pip[0].startswith("globus-compute-endpoint==")


@pytest.mark.parametrize(
    "image", ["", "a b", "a;b", "$(x)", "-x", "a\n", "../x", "a" * 129, "{x}", "'", 1]
)
def test_nothing_but_a_name_gets_into_the_command(image: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        render(STOCK, {"image": image})
