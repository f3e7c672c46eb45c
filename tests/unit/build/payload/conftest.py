"""A web server on the loopback interface, and git repositories behind it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))  # for the helpers beside `unit`

from provision.web import Web, make_repository, served


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with served(tmp_path) as made:
        yield made


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody knows yet."""
    pem, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    argv = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    argv += " -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    argv += f" -keyout {key} -out {pem}"
    subprocess.run(argv.split(), check=True, capture_output=True)
    with pem.open("a") as file:
        file.write(key.read_text())
    return pem


@pytest.fixture
def tls_web(tmp_path: Path, certificate: Path) -> Iterator[Web]:
    """The same over TLS."""
    with served(tmp_path, certificate) as made:
        yield made


@pytest.fixture
def repository(web: Web) -> Callable[..., Path]:
    """``repository("name", {"file": "text"})`` makes one with a single commit."""
    return functools.partial(make_repository, web)
