"""Every endpoint template renders, by upstream's own code, to a valid configuration."""

from __future__ import annotations

import json
import pwd
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest
import yaml
from globus_compute_endpoint.endpoint.config.utils import render_config_user_template

from globus_compute_apptainer.config import ContainersConfig

TEMPLATES = Path(__file__).parents[2] / "endpoint_templates"
TEMPLATE = "user_config_template.yaml.j2"
ALL = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir())


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


@pytest.mark.parametrize("name", ALL)
def test_it_renders_to_a_block_that_parses(name: str) -> None:
    engine = render(name, {})["engine"]
    assert engine["type"] == "ApptainerEngine"
    assert ContainersConfig.parse(engine["containers"]).default_container is None


@pytest.mark.parametrize("name", ALL)
def test_the_environment_file_is_yaml(name: str) -> None:
    text = (TEMPLATES / name / "user_environment.yaml").read_text()
    assert yaml.safe_load(text) in (None, {})


@pytest.mark.parametrize("name", ALL)
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
