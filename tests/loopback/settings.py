"""The files and variables that a test bed's endpoint is configured with.

Pure apart from writing files into the endpoint's own folder. Runs in the test process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = "user_config_template.yaml.j2"
SCHEMA = "user_config_schema.json"
USER_ENVIRONMENT = "user_environment.yaml"

_LOOPBACK_CREDENTIALS = {
    "GLOBUS_COMPUTE_CLIENT_ID": "3f0c1d5e-8f53-4c0e-9c2b-5d5f1f0a7c11",
    "GLOBUS_COMPUTE_CLIENT_SECRET": "not-a-secret",
}
_PROXIES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_SITE_PREFIXES = ("PIP_", "UV_", "APPTAINER", "SSL_CERT_", "GCA_")
_SITE_NAMES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LANG", "LC_ALL", "TMPDIR")


def daemon_environment(
    url: str, venv_bin: Path, user_dir: Path, extra: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the core endpoint's process.

    In the ``local`` environment the SDK insists on ``http://localhost:5000``; the proxy
    variable is what brings those requests to ``url``.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GLOBUS_", "PYTHON", "PYTEST_", "VIRTUAL_ENV"))
        and name not in _PROXIES
    }
    return {
        **inherited,
        **_LOOPBACK_CREDENTIALS,
        **extra,
        "PATH": f"{venv_bin}:{os.environ.get('PATH', os.defpath)}",
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": url,
        "GLOBUS_COMPUTE_USER_DIR": str(user_dir),
        "http_proxy": url,
        "no_proxy": "127.0.0.1",
    }


def user_environment(
    template_dir: Path, venv_bin: Path, user_dir: Path, extra: Mapping[str, str]
) -> dict[str, str]:
    """The template's environment of user endpoints, plus what this host's admin adds.

    A privileged core endpoint clears the environment, so everything a build or a worker
    needs (package index, certificates, proxies as they were) has to be named here.
    """
    source = template_dir / USER_ENVIRONMENT
    template = (yaml.safe_load(source.read_text()) or {}) if source.exists() else {}
    path = template.get("PATH") or os.environ.get("PATH", os.defpath)
    return {
        **{name: value for name, value in os.environ.items() if _is_site_setting(name)},
        **{name: os.environ.get(name, "") for name in _PROXIES},
        **{name: str(value) for name, value in template.items()},
        **extra,
        "PATH": f"{venv_bin}:{path}",
        "GLOBUS_COMPUTE_USER_DIR": str(user_dir),
    }


def _is_site_setting(name: str) -> bool:
    return name.startswith(_SITE_PREFIXES) or name in _SITE_NAMES


def core_config(heartbeat_period: float, *, debug: bool) -> str:
    """The core endpoint's ``config.yaml``; a privileged one must name a contact."""
    text: str = yaml.safe_dump(
        {
            "display_name": "loopback",
            "email": "tester@example.org",
            "heartbeat_period": heartbeat_period,
            "debug": debug,
        }
    )
    return text


def edited_template(
    template_dir: Path, variables: Mapping[str, Any], edits: Mapping[str, str]
) -> str:
    """The template as an admin changes it before use.

    ``variables`` are set at its top; each key of ``edits``, which must occur once, is
    replaced by its value.
    """
    text = (template_dir / TEMPLATE).read_text()
    for old, new in edits.items():
        if text.count(old) != 1:
            raise ValueError(
                f"{old!r} occurs {text.count(old)} times in {template_dir}"
            )
        text = text.replace(old, new)
    head = (
        f"{{%- set {name} = {_as_user_option(value)!r} %}}\n"
        for name, value in variables.items()
    )
    return "".join(head) + text


def _as_user_option(value: Any) -> Any:
    """The value as an endpoint hands a user's option to a template: strings quoted."""
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    if isinstance(value, Mapping):
        return {key: _as_user_option(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_user_option(item) for item in value]
    return "null" if value is None else value
