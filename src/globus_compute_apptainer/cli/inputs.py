"""What the command line names: configurations and container specs.

Runs in ``gc-apptainer``. Only reads; whether a spec is valid and allowed is decided
by the same code as for a task (:mod:`..endpoint.requests`).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from globus_compute_apptainer.cli import origins
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests, Wanted
from globus_compute_apptainer.errors import ConfigError, SpecError


@dataclass(frozen=True)
class Settings:
    """A configuration as it was written, and as it was understood.

    :param raw: the ``containers:`` block, for an engine to be started with
    :param provider: the engine's provider (``SlurmProvider``); empty if not known
    """

    raw: Mapping[str, Any]
    config: ContainersConfig
    provider: str = ""


def settings(path: str | None, cache_dir: str | None) -> Settings:
    """The configuration to work with.

    :param path: a YAML file with ``containers:`` or ``engine:``; None for defaults
    :param cache_dir: overrides the configuration's
    :raises ConfigError: it cannot be read, or is not valid
    """
    document = {} if path is None else _document(Path(path))
    engine = document.get("engine", {})
    block = _block(document, engine, path)
    if cache_dir is not None:
        block["cache_dir"] = str(Path(cache_dir).expanduser().absolute())
    provider = engine.get("provider") if isinstance(engine, Mapping) else None
    named = provider.get("type") if isinstance(provider, Mapping) else None
    return Settings(block, ContainersConfig.parse(block), str(named or ""))


def spec(
    argument: str, config: ContainersConfig, choices: origins.Choices | None = None
) -> object:
    """The spec that ``argument`` means, as a client would have attached it.

    :param argument: inline JSON, ``-``, a path, or the name of a configured image; a
        path may also be of what specs are made of, see :mod:`.origins`
    :param choices: for the latter only
    :raises SpecError: it cannot be read
    """
    if _is_origin(argument):
        return origins.spec(Path(argument), choices)
    if choices is not None:
        origins.refuse_choices(choices, argument)
    if argument.lstrip().startswith("{"):
        return _parsed(argument, "the argument", as_json=True)
    if argument == "-":
        text = sys.stdin.read()
        return _parsed(text, "standard input", as_json=text.lstrip().startswith("{"))
    path = Path(argument)
    if argument in config.images and not _is_there(argument):
        return argument
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"the spec {argument} cannot be read: {_reason(error)}",
            hint=f"give {_FORMS}",
            code="spec-unreadable",
        ) from None
    return _parsed(text, argument, as_json=path.suffix == ".json")


def _is_origin(argument: str) -> bool:
    if argument == "-" or argument.lstrip().startswith("{"):
        return False
    return _is_there(argument) and origins.is_known(Path(argument))


def _is_there(argument: str) -> bool:
    # Path.exists() raises for names that no file can have.
    return os.path.exists(argument)  # noqa: PTH110


def wanted(attached: object, config: ContainersConfig) -> Wanted:
    """The image that a task with this spec would get here: valid and allowed.

    Where the spec names neither a base nor a Python version, this interpreter's
    stands in for that of the submitting client.

    :raises SpecError: or PolicyError, as for a task
    """
    python = ".".join(platform.python_version_tuple()[:2])
    found = Requests(config, python).wanted(attached)
    if found is None:
        raise SpecError("an empty spec", hint=f"give {_FORMS}", code="spec-empty")
    return found


_FORMS = (
    "a JSON or YAML file, - for standard input, inline JSON starting with {, the name"
    f" of an image that the configuration defines; or {origins.KINDS}"
)


def _document(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {_reason(error)}",
            code="config-unreadable",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the configuration {path} is not YAML: {_one_line(error)}",
            hint="a template with {{ … }} has to be rendered first",
            code="config-unreadable",
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"the configuration {path} is not a mapping")
    return found


def _block(
    document: Mapping[str, Any], engine: object, path: str | None
) -> dict[str, Any]:
    """The ``containers:`` block, wherever it is; a copy."""
    if "containers" in document:
        block = document["containers"]
    elif isinstance(engine, Mapping) and (engine or path is None):
        block = engine.get("containers")
    else:
        raise ConfigError(
            f"there is no containers: block in {path}",
            hint="write it at the top of the file, or under engine:",
        )
    if block is not None and not isinstance(block, Mapping):
        raise ConfigError(f"the containers: block in {path} is not a mapping")
    return dict(block or {})


def _parsed(text: str, origin: str, *, as_json: bool) -> object:
    try:
        return json.loads(text) if as_json else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if as_json else "YAML"
        raise SpecError(
            f"the spec in {origin} is not {kind}: {_one_line(error)}",
            code="spec-unreadable",
        ) from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8 text"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
