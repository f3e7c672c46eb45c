"""Who this endpoint is, for each container registry.

Runs in the endpoint process. Reads what ``apptainer registry login`` and ``docker
login`` write. Credential helper programs are not called: what they hold is not seen.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HUB: Final = "registry-1.docker.io"
"""Docker Hub's registry, which images without a host and ``docker.io`` mean."""

_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", HUB})
_FILES: Final = (".apptainer/docker-config.json", ".docker/config.json")


@dataclass(frozen=True)
class Credentials:
    """What one registry is told; the text form shows no secrets.

    :param token: an identity token, to be exchanged; then there is no password
    """

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def for_registry(
    host: str, home: Path, variables: Mapping[str, str]
) -> Credentials | None:
    """The credentials for ``host``, or None where it is to be asked anonymously.

    :param home: the user's home directory
    :param variables: ``APPTAINER_DOCKER_USERNAME`` and ``…_PASSWORD`` in it go to
        *every* registry that asks, as Apptainer itself does it
    """
    user = variables.get("APPTAINER_DOCKER_USERNAME", "")
    password = variables.get("APPTAINER_DOCKER_PASSWORD", "")
    if user and password:
        return Credentials(user, password)
    found = (_from_file(home / name, host) for name in _FILES)
    return next((one for one in found if one is not None), None)


def _from_file(path: Path, host: str) -> Credentials | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        entries = told["auths"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return next(_matching(entries, host), None)


def _matching(
    entries: Iterable[tuple[str, object]], host: str
) -> Iterator[Credentials]:
    for written, entry in entries:
        if _host(written) == host and isinstance(entry, Mapping):
            found = _credentials(entry)
            if found is not None:
                yield found


def _host(written: str) -> str:
    """The host of a key such as ``https://index.docker.io/v1/``."""
    host = written.rpartition("://")[2].split("/", 1)[0].lower()
    return HUB if host in _HUB_NAMES else host


def _credentials(entry: Mapping[str, object]) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials(token=str(token))
    try:
        pair = base64.b64decode(str(entry.get("auth", ""))).decode("utf-8")
    except (binascii.Error, ValueError):
        pair = ""
    user, _, password = pair.rstrip("\0").partition(":")
    user = user or str(entry.get("username", ""))
    password = password or str(entry.get("password", ""))
    return Credentials(user, password) if user and password else None
