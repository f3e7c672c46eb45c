"""Builds that are ended in the middle of a step: nothing of them stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.images import open_service
from provision.wheels import make_sdist

if TYPE_CHECKING:
    from .conftest import Endpoint

pytestmark = pytest.mark.apptainer

STEPS = ("pull", "payload", "apt", "conda", "pip", "post")
LARGE = 100_000


class Stuck:
    """A server that takes requests and answers none, but passes a registry's names on.

    :ivar waiting: what was asked for, as it comes
    """

    def __init__(self, registry: str) -> None:
        self.waiting: set[str] = set()
        self._registry, self._end = registry, threading.Event()
        stuck = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stuck._get(self)

            do_HEAD = do_CONNECT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/v2/") and self._passed_on(request):
            return
        start = re.match(r"/(\w+)", request.path)
        step = start[1] if start else "apt"  # which takes this for a proxy
        self.waiting.add("pull" if step == "v2" else step)
        self._end.wait()

    def _passed_on(self, request: BaseHTTPRequestHandler) -> bool:
        """Everything of the registry but what is large."""
        headers = {"Accept": request.headers.get("Accept", "*/*")}
        url = f"http://{self._registry}{request.path}"
        asked = urllib.request.Request(url, headers=headers, method=request.command)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            if int(answer.headers.get("Content-Length") or 0) > LARGE:
                return False
            body = answer.read()
            request.send_response(answer.status)
            for name in ("Content-Type", "Content-Length", "Docker-Content-Digest"):
                if value := answer.headers.get(name):
                    request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)
        return True

    def close(self) -> None:
        self._end.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def stuck(registry: str) -> Iterator[Stuck]:
    made = Stuck(registry)
    yield made
    made.close()


def specs(endpoint: Endpoint, stuck: Stuck) -> dict[str, dict[str, Any]]:
    """By step: a spec whose build gets stuck in it."""
    url = f"http://{stuck.address}"
    ask = f"__import__('urllib.request').request.urlopen('{url}/%s').read()"
    make_sdist(endpoint.links, "stuck-source", "1.0", "return " + ask % "pip")
    return {
        "pull": {"base_image": f"{stuck.address}/python:3.13-slim"},
        "payload": {"payload_url": f"{url}/payload.zip"},
        "apt": {"apt": ["hello"]},
        "conda": {"conda": {"channels": [f"{url}/conda"], "dependencies": ["x"]}},
        "pip": {"pip": ["stuck-source"]},
        "post": {"post": [f'python3 -c "{ask % "post"}"']},
    }


def settings(endpoint: Endpoint, stuck: Stuck, seconds: float) -> dict[str, Any]:
    """apt alone goes through a proxy, which is the server that is stuck."""
    proxy, here = f"http://{stuck.address}", "127.0.0.1"
    build = {
        "timeout": seconds,
        "concurrency": len(STEPS),
        "http_registries": [endpoint.registry, stuck.address],
        "env": {
            **dict.fromkeys(("http_proxy", "https_proxy"), proxy),
            "no_proxy": here,
        },
    }
    return endpoint.config(build=build)


def ends(endpoint: Endpoint, stuck: Stuck, seconds: float) -> dict[str, BaseException]:
    """All builds at once, each to its end."""
    config = ContainersConfig.parse(settings(endpoint, stuck, seconds))
    requests = Requests(config, "3.11")
    with closing(open_service(config, endpoint.variables())) as service:
        futures = {}
        for step, spec in specs(endpoint, stuck).items():
            wanted = requests.wanted({"base_image": endpoint.base, **spec})
            assert wanted
            futures[step] = service.request(wanted.image, policy=wanted.policy)
        found = {step: future.exception(300) for step, future in futures.items()}
    return {step: error for step, error in found.items() if error is not None}


def test_time_is_up_in_any_step(endpoint: Endpoint, stuck: Stuck) -> None:
    endpoint.get(endpoint.good)
    for seconds in (6, 24, 72):  # the first that lets all of them get so far
        errors = ends(endpoint, stuck, seconds)
        assert endpoint.left() == []
        if stuck.waiting == set(STEPS):
            break
    assert stuck.waiting == set(STEPS)
    found = {
        step: (error.code, error.stage)
        for step, error in errors.items()
        if isinstance(error, BuildError)
    }
    assert found == {step: ("build-timeout", step) for step in STEPS}
    assert running(stuck.address) == []


BUILD = """\
import json, os, sys
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.images import open_service
block, variables, specs = json.load(sys.stdin)
config = ContainersConfig.parse(block)
requests = Requests(config, "3.11")
service = open_service(config, variables)
wanted = [requests.wanted(spec) for spec in specs]
futures = [service.request(one.image, policy=one.policy) for one in wanted]
for future in futures:
    future.exception()
"""


def test_what_sigkill_leaves_the_next_start_removes(
    endpoint: Endpoint, stuck: Stuck
) -> None:
    endpoint.get(endpoint.good)
    base = {"base_image": endpoint.base}
    wanted = [{**base, **spec} for spec in specs(endpoint, stuck).values()]
    told = [settings(endpoint, stuck, 300.0), endpoint.variables(), wanted]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", BUILD], stdin=-1, env=env)
    try:
        assert child.stdin
        child.stdin.write(json.dumps(told).encode())
        child.stdin.close()
        wait_for(lambda: stuck.waiting == set(STEPS) or child.poll() is not None)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert stuck.waiting == set(STEPS)
    assert len(list(endpoint.scratch.iterdir())) == len(STEPS)
    # What runs in containers has lost its builder, but not what it waits for.
    for pid, _ in running(stuck.address) + running(str(endpoint.scratch)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: running(str(endpoint.scratch)) == [])
    assert endpoint.get(endpoint.good, fresh=True).cache == "built"
    assert endpoint.left() == []


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def running(mark: str) -> list[tuple[int, str]]:
    """Processes, of anybody, whose command lines hold ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if mark in text and path.parent.name != str(os.getpid()):
            found.append((int(path.parent.name), text.replace("\0", " ")))
    return found
