"""Images as an endpoint gets them: a configuration, specs as clients write them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.endpoint.requests import Requests
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.images import ImageService, Ready, open_service
from provision.web import Web, served
from provision.wheels import make_wheel

SECONDS = 300


@dataclass
class Endpoint:
    """What an endpoint does with specs, without the tasks.

    Its Python packages come from ``links`` and no index. ``good`` is a spec that works.
    """

    folder: Path
    registry: str
    block: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    opened: list[ImageService] = field(default_factory=list)

    @property
    def links(self) -> Path:
        return self.folder / "links"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def top(self) -> Path:
        return self.folder / "cache/v2"

    @property
    def base(self) -> str:
        return f"{self.registry}/python:3.11-slim"

    @property
    def good(self) -> dict[str, Any]:
        return {"base_image": self.base, "pip": ["alpha==1.0"]}

    def config(self, **changes: Any) -> dict[str, Any]:
        """The ``containers:`` block; ``build`` and ``policy`` are merged."""
        policy = {"allow_post": True, "payload_urls": ["*"]}
        build = {"http_registries": [self.registry], "tmp_dir": str(self.scratch)}
        block = {"cache_dir": str(self.folder / "cache"), **self.block, **changes}
        for name, always in (("build", build), ("policy", policy)):
            ours = {**self.block.get(name, {}), **changes.get(name, {})}
            block[name] = {**always, **ours}
        return block

    def variables(self) -> dict[str, str]:
        closed = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
        links = {"PIP_FIND_LINKS": str(self.links)}
        return {**os.environ, **closed, **links, **self.environ}

    def get(
        self,
        spec: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Ready:
        """An image, from a service that is opened for it and closed again.

        :param config: of the ``containers:`` block
        :raises ContainerError: as a client would get it
        """
        block = ContainersConfig.parse(self.config(**(config or {})))
        wanted = Requests(block, "3.11").wanted({"base_image": self.base, **spec})
        assert wanted is not None
        how = {"policy": wanted.policy, "max_age": wanted.max_age, **how}
        service = open_service(block, self.variables())
        try:
            if not how.get("fresh"):
                found = service.cached(wanted.image.digest, max_age=how["max_age"])
                if found is not None:
                    return found
            ready = service.request(wanted.image, **how).result(SECONDS)
            service.settle()
            return ready
        finally:
            service.close()

    def error(self, spec: Mapping[str, Any], **how: Any) -> ContainerError:
        with pytest.raises(ContainerError) as caught:
            self.get(spec, **how)
        return caught.value

    def left(self) -> list[Path]:
        """What builds have left behind."""
        work = [self.scratch, self.top / "tmp", self.top / "packages/work"]
        found = [
            place for folder in work if folder.is_dir() for place in folder.iterdir()
        ]
        half = [p for p in self.top.rglob("*") if p.name.startswith((".new", ".tmp"))]
        return found + half

    def inside(self, image: Path, *command: str, options: tuple[str, ...] = ()) -> str:
        """What a command says in an image."""
        lines: list[str] = []
        apptainer = Apptainer.find()
        always = ["--no-home", "--no-mount", "cwd,tmp"]
        argv = apptainer.exec_argv(image, command, options=[*always, *options], cwd="/")
        env = apptainer.environment()
        assert run(argv, env=env, timeout=60, on_line=lines.append).ok, lines
        return "\n".join(line for line in lines if not line.startswith("INFO:"))


@pytest.fixture(scope="module")
def endpoint(
    registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """One for a module, so that the base is brought here once."""
    made = Endpoint(tmp_path_factory.mktemp("endpoint"), registry)
    made.scratch.mkdir()
    make_wheel(made.links, "alpha", "1.0")
    yield made


@pytest.fixture(autouse=True)
def nothing_left(endpoint: Endpoint) -> Iterator[None]:
    """However a build ends, nothing of it stays but the log and what was finished."""
    yield
    assert endpoint.left() == []


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with served(tmp_path) as made:
        yield made
