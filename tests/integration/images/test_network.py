"""Registries and indexes in trouble: a typed error or, after patience, the image; never
a wrong one, nothing left, and the next request succeeds once they have recovered."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.errors import BuildError
from provision.faulty import CUT, FLIP, HANG, RESET, STALL, Faulty, in_front_of
from provision.wheels import make_wheel

if TYPE_CHECKING:
    from .conftest import Endpoint

pytestmark = pytest.mark.apptainer

SHORT = {"build": {"timeout": 8}}
"""For servers that say nothing: nobody waits for the usual half hour."""

BAD_NETWORK = ("registry-unreachable", "digest-mismatch")
FOR_EVER = (HANG, STALL)


@pytest.fixture
def faulty_registry(registry: str, endpoint: Endpoint) -> Iterator[Faulty]:
    with in_front_of(registry) as made:
        endpoint.block["build"] = {"http_registries": [registry, made.address]}
        yield made
        endpoint.block.pop("build")


def spec_of(registry: Faulty) -> dict[str, Any]:
    """An image without packages of its own, on a small base."""
    return {"base_image": f"{registry.address}/nopython:latest"}


def forget_everything(endpoint: Endpoint) -> None:
    """So that the base is asked for again."""
    for shelf in ("tags", "bases", "index", "images"):
        for path in sorted((endpoint.top / shelf).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        *((fault, "/manifests/") for fault in (RESET, HANG, CUT, FLIP, 429, 503, 403)),
        *((fault, "/blobs/") for fault in (RESET, STALL, CUT, FLIP, 429, 500, 403)),
    ],
)
def test_a_registry_in_trouble(
    endpoint: Endpoint, faulty_registry: Faulty, fault: str | int, where: str
) -> None:
    forget_everything(endpoint)
    faulty_registry.break_down(fault, where)
    config = SHORT if fault in FOR_EVER else None
    error = endpoint.error(spec_of(faulty_registry), config=config)
    assert faulty_registry.struck
    assert isinstance(error, BuildError)
    if fault in FOR_EVER:
        assert error.code == "build-timeout"
    elif fault == 403:
        assert error.code == "base-not-found"
    else:
        assert error.code in BAD_NETWORK, error.render()
    assert error.stage in ("resolve", "pull")
    assert "Traceback" not in error.render()
    assert endpoint.left() == []
    faulty_registry.recover()
    image = endpoint.get(spec_of(faulty_registry), fresh=True).image
    assert endpoint.inside(image.path, "/bin/sh", "-c", "echo works") == "works"


@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize("fault", [RESET, CUT, 500, 503])
def test_trouble_that_passes_is_not_noticed(
    endpoint: Endpoint, faulty_registry: Faulty, fault: str | int, where: str
) -> None:
    forget_everything(endpoint)
    faulty_registry.break_down(fault, where, limit=1)
    image = endpoint.get(spec_of(faulty_registry)).image
    assert len(faulty_registry.struck) == 1
    assert endpoint.inside(image.path, "/bin/sh", "-c", "echo works") == "works"


@pytest.fixture
def index(endpoint: Endpoint, tmp_path: Path) -> Iterator[Faulty]:
    """A package index on loopback that holds ``beta``, and the way to it."""
    wheel = make_wheel(tmp_path / "simple/beta", "beta", "1.0")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(
        f'<!DOCTYPE html><a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
    )
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        with in_front_of(f"127.0.0.1:{server.server_port}") as way:
            endpoint.environ = {
                "PIP_NO_INDEX": "0",
                "PIP_INDEX_URL": f"http://{way.address}/simple/",
                "UV_HTTP_RETRIES": "1",  # whose patience is not what is tested
            }
            yield way
        endpoint.environ = {}
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        # A page with another letter is a page: nothing says that it is wrong.
        *((fault, "/simple/beta/") for fault in (RESET, HANG, CUT, 429, 500)),
        *((fault, ".whl") for fault in (RESET, STALL, CUT, FLIP, 429, 500)),
    ],
)
def test_a_package_index_in_trouble(
    endpoint: Endpoint, index: Faulty, fault: str | int, where: str
) -> None:
    spec = {"pip": ["beta"]}
    endpoint.get(endpoint.good)  # so that the base is here
    index.break_down(fault, where)
    config = SHORT if fault in FOR_EVER else None
    error = endpoint.error(spec, config=config, fresh=True)
    assert index.struck
    assert isinstance(error, BuildError)
    assert error.stage == "pip"
    allowed = {"index-unreachable", "hash-mismatch", "build-timeout"}
    assert error.code in allowed, error.render()
    assert "Traceback" not in error.render()
    assert endpoint.left() == []
    index.recover()
    image = endpoint.get(spec, fresh=True).image
    program = "import beta; print(beta.version)"
    assert endpoint.inside(image.path, "python3", "-c", program) == "1.0"
