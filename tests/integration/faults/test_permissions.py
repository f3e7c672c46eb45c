"""Permissions lost in the middle of a build: a typed error, and then all is well.

The directories become read-only at the start of a stage of a real build, in the thread
that builds, so that the stage meets it for certain.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.images import ImageService, Ready, open_service
from globus_compute_apptainer.store.cache import Store
from integration.images.conftest import Endpoint
from provision.wheels import make_wheel

pytestmark = [
    pytest.mark.apptainer,
    pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
]

SECONDS = 120
PLACES = ["images", "index", "tmp", "locks", "scratch"]


class Losing:
    """An endpoint that loses the right to write to a place while it builds.

    :param place: a directory of the cache, or ``scratch``
    :param stage: at whose start
    """

    def __init__(self, endpoint: Endpoint, place: str, stage: str) -> None:
        self.endpoint, self.stage = endpoint, stage
        scratch = place == "scratch"
        self.place = endpoint.scratch if scratch else endpoint.top / place
        self.block = ContainersConfig.parse(endpoint.config())
        self.modes: dict[Path, int] = {}
        self.armed = True

    def sink(self, event: events.Event) -> None:
        started = isinstance(event, events.StageStarted) and event.stage == self.stage
        if started and self.armed:
            self.armed = False
            self.lose()

    def lose(self) -> None:
        for folder in [self.place, *_folders(self.place)]:
            self.modes[folder] = folder.stat().st_mode
            folder.chmod(0o500)

    def give_back(self) -> None:
        """Also to what was made inside meanwhile; from the top, as it must be."""
        for folder, mode in self.modes.items():
            with contextlib.suppress(FileNotFoundError):
                folder.chmod(mode)

    @contextlib.contextmanager
    def opened(self) -> Iterator[ImageService]:
        service = open_service(self.block, self.endpoint.variables(), self.sink)
        try:
            yield service
        finally:
            self.give_back()
            service.close()

    def ask(self, service: ImageService, spec: dict[str, Any]) -> Ready:
        wanted = Requests(self.block, "3.11").wanted(spec)
        assert wanted is not None
        future = service.request(wanted.image, policy=wanted.policy)
        try:
            return future.result(SECONDS)
        finally:
            service.settle()

    def digest(self, spec: dict[str, Any]) -> str:
        wanted = Requests(self.block, "3.11").wanted(spec)
        assert wanted is not None
        return wanted.image.digest


def _folders(top: Path) -> list[Path]:
    """Those that are this user's to change."""
    found = [Path(at, name) for at, names, _ in os.walk(top) for name in names]
    mine = [p for p in found if not p.is_symlink() and p.stat().st_uid == os.geteuid()]
    return [path for path in mine if path.is_dir()]


@pytest.fixture(scope="module")
def endpoint(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    made = Endpoint(tmp_path_factory.mktemp("permissions"), registry)
    made.scratch.mkdir()
    make_wheel(made.links, "alpha", "1.0")
    made.get({"pip": ["alpha==1.0"]})  # the base is here
    return made


def spec(endpoint: Endpoint, number: list[int] = [0]) -> dict[str, Any]:  # noqa: B006
    """One that no build was asked for yet."""
    number[0] += 1
    name = f"thing{number[0]}"
    make_wheel(endpoint.links, name, "1.0")
    post = ["echo x >/made"]
    return {"base_image": endpoint.base, "pip": [f"{name}==1.0"], "post": post}


def _is_well(losing: Losing) -> None:
    """What is in the cache is what it says, and nothing unfinished is anywhere."""
    store = Store(losing.block.cache_dir)
    assert all(store.examine(image).good for image in store.images())
    assert losing.endpoint.left() == []


def check(endpoint: Endpoint, place: str, stage: str) -> str:
    """Lose a place in a stage; see that all is well. The error's code, if any."""
    losing, wanted = Losing(endpoint, place, stage), spec(endpoint)
    with losing.opened() as service:
        code = ""
        try:
            losing.ask(service, wanted)
        except ContainerError as error:
            code = error.code
            print(f"--- {place} {stage}\n{error}")
            assert code != "internal-error", error
            assert str(losing.place) in str(error), error
            assert re.search("(?i)permission denied|writable|not permitted", str(error))
            assert Store(losing.block.cache_dir).lookup(losing.digest(wanted)) is None
        assert not losing.armed
        losing.give_back()
        ready = losing.ask(service, wanted)
        path, python = ready.image.path, str(ready.image.manifest.python)
        name = wanted["pip"][0].partition("==")[0]
        said = endpoint.inside(path, python, "-c", f"import {name}; print('well')")
        assert said.splitlines()[-1] == "well"
        _is_well(losing)
    return code


@pytest.mark.parametrize("stage", ["pip", "probe"])
@pytest.mark.parametrize("place", PLACES)
def test_permissions_lost_in_a_build(endpoint: Endpoint, place: str, stage: str):
    code = check(endpoint, place, stage)
    # When the last stage begins, nothing more is needed of these two.
    needed = stage == "pip" or place not in {"locks", "scratch"}
    scratch = place == "scratch"
    expected = "host-unsuitable" if scratch else "cache-unusable"
    assert code == (expected if needed else "")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["resolve", "post", "pack"])
@pytest.mark.parametrize("place", [*PLACES, "logs", "layers", "packages", "leases"])
def test_permissions_lost_at_other_times(endpoint: Endpoint, place: str, stage: str):
    check(endpoint, place, stage)
