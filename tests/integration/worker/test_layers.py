"""Tasks on images with layers, on nodes that show them and on nodes that do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.images import Ready, open_service
from globus_compute_apptainer.spec.model import ImageSpec

if TYPE_CHECKING:
    from .conftest import Inside

pytestmark = pytest.mark.apptainer

Request = Callable[..., Ready]

# Adds an option after `exec`, wherever that stands among the arguments.
WITH_OPTION = """\
#!/bin/bash
for word; do
    arguments+=("$word")
    [ "$word" = exec ] && [ -z "$done" ] && arguments+=({option}) && done=1
done
exec {apptainer} "${{arguments[@]}}"
"""


@pytest.fixture(scope="module")
def request_image(
    registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Request]:
    """``request_image(apptainer=PROGRAM, pip=(…))``, from one cache."""
    cache = tmp_path_factory.mktemp("cache")

    def request_image(apptainer: str | None = None, **spec: Any) -> Ready:
        build = {"http_registries": [registry]}
        block = {"cache_dir": str(cache), "build": build, "apptainer": apptainer}
        config = ContainersConfig.parse(block)
        image = ImageSpec(f"{registry}/python:3.11-slim", "docker", **spec)
        with closing(open_service(config, os.environ)) as service:
            ready = service.request(image).result(300)
            service.settle()
            return ready

    yield request_image


@pytest.fixture
def run_in(inside: Inside) -> Callable[..., Inside]:
    """``run_in(ready)`` runs functions in that image, as the engine has it done."""

    def run_in(ready: Ready, **changes: Any) -> Inside:
        manifest = ready.image.manifest
        return inside.with_order(
            image=str(ready.image.path),
            size=manifest.size,
            python=manifest.python,
            python_version=manifest.python_version,
            markers=manifest.markers,
            bytecode=str(ready.image.bytecode) if ready.image.bytecode else None,
            **changes,
        )

    return run_in


def which_humanize() -> str:
    import humanize

    return humanize.__file__


def how_it_is_imported() -> list[str]:
    """What a new Python says of where it takes the code of packages from."""
    import subprocess
    import sys

    argv = [sys.executable, "-v", "-c", "import humanize"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    lines = [line for line in said.splitlines() if line.startswith("# code object")]
    return [line for line in lines if "/.gc-apptainer/" in line]


def test_layers_and_bytecode_are_seen(request_image: Request, run_in) -> None:
    ready = request_image(pip=("humanize",))
    assert ready.image.bytecode is not None
    complete = run_in(ready)
    assert complete.value(which_humanize).startswith("/.gc-apptainer/env/")
    # Nothing is compiled by a process that starts in it.
    taken = complete.value(how_it_is_imported)
    assert taken
    assert [line for line in taken if not line.rstrip("'").endswith(".pyc")] == []
    # Without the bytecode it works too, and compiles.
    without = run_in(ready).with_order(bytecode=None)
    assert any(line.endswith(".py") for line in without.value(how_it_is_imported))
    # A file that went away meanwhile is no error.
    gone = run_in(ready).with_order(bytecode="/no/such/file.sqfs")
    assert gone.value(which_humanize).startswith("/.gc-apptainer/env/")


BLIND = {
    "enable overlay = no": {"enable_overlay": "no"},
    "enable underlay = preferred": {"enable_underlay": "preferred"},
    "--underlay": "--underlay",
    "--unsquash": "--unsquash",
}


def ways(*slow: str) -> pytest.MarkDecorator:
    """Those named ``slow`` show nothing that the others do not."""
    marks = {way: [pytest.mark.slow] if way in slow else [] for way in BLIND}
    params = [pytest.param(BLIND[way], id=way, marks=marks[way]) for way in BLIND]
    return pytest.mark.parametrize("blind", params, indirect=True)


@pytest.fixture
def blind(
    request: pytest.FixtureRequest, configured, apptainer: Apptainer, tmp_path: Path
) -> str:
    """An Apptainer that does not show the layers of an image, and does not say so."""
    if isinstance(request.param, dict):
        return str(configured(**request.param).path)
    program = tmp_path / "apptainer-with-option"
    words = {"option": request.param, "apptainer": apptainer.path}
    program.write_text(WITH_OPTION.format(**words))
    program.chmod(0o755)
    return str(program)


@ways("--unsquash")
def test_a_node_without_layers_refuses_the_task(
    request_image: Request, run_in, value_of, blind: str
) -> None:
    """And does not run it in the bare base."""
    ready = request_image(pip=("humanize",))
    assert ready.image.manifest.strategy == "layered"
    own = (("FOR", blind),)  # no container of another test's
    node = run_in(ready, apptainer=blind, env=own)
    result = node.with_order(bytecode=None).result(which_humanize)
    assert result.is_error
    assert result.error_details.code == "overlay-unavailable", result.data
    assert "build.strategy: flat" in result.data
    # Asked for one more layer, Apptainer refuses, or shows all of them.
    assert ready.image.bytecode
    result = node.result(which_humanize)
    if result.is_error:
        assert result.error_details.code == "overlay-unavailable", result.data
    else:
        assert value_of(result).startswith("/.gc-apptainer/env/")


@ways("enable underlay = preferred", "--underlay", "--unsquash")
def test_what_is_built_where_layers_do_not_show_is_flat_and_runs(
    request_image: Request, run_in, blind: str
) -> None:
    own = (("FOR", blind),)  # so that it is another image each time
    ready = request_image(apptainer=blind, pip=("humanize",), build_env=own)
    assert ready.cache == "built"
    assert ready.image.manifest.strategy == "flat"
    assert ready.image.manifest.reason
    where = run_in(ready, apptainer=blind).value(which_humanize)
    assert where.startswith("/.gc-apptainer/env/")
