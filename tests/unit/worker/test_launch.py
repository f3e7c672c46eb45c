"""The command line that starts a container."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import launch as launching
from globus_compute_apptainer.worker.container import NO_SHELL
from globus_compute_apptainer.worker.launch import (
    Launch,
    launch,
    launch_program,
    launch_shell,
)


@pytest.fixture
def ready(order, tmp_path: Path, monkeypatch):
    """An order for an image file that is there, on a machine with an Apptainer."""
    image = tmp_path / "image.sif"
    image.write_bytes(b"0123456789")
    monkeypatch.setattr(
        launching, "_apptainer", lambda _name: Apptainer("/bin/apptainer", "1.4.5")
    )
    return dataclasses.replace(order, image=str(image))


def inside(made: Launch, image: str) -> list[str]:
    """What runs in the container."""
    argv = list(made.argv)
    return argv[argv.index(image) + 1 :]


def test_an_image_of_one_piece_starts_the_agent_itself(ready, tmp_path):
    command = inside(launch(ready, str(tmp_path)), ready.image)
    assert command[:3] == ["/usr/bin/python3", "-s", "-c"]
    assert command[4] == "/.gca/ours"


def test_layers_are_looked_for_before_anything_starts(ready, tmp_path):
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.touch()
    layered = dataclasses.replace(ready, markers=(str(there), str(missing)))
    command = inside(launch(layered, str(tmp_path)), ready.image)
    at = command.index("/usr/bin/python3")
    said = subprocess.run([*command[:at], "true"], capture_output=True, text=True)
    assert said.returncode == 78
    assert said.stderr == f"{launching.LAYER_MISSING}{missing}\n"
    missing.touch()
    assert subprocess.run([*command[:at], "true"]).returncode == 0


def test_a_missing_layer_is_a_typed_error(ready, start, tmp_path):
    layered = dataclasses.replace(ready, markers=(str(tmp_path / "missing"),))
    command = inside(launch(layered, str(tmp_path)), ready.image)
    with pytest.raises(TaskError) as caught:
        start(Launch(tuple(command), {"PATH": "/usr/bin:/bin"}, "/"))
    assert caught.value.code == "overlay-unavailable"
    assert "build.strategy: flat" in caught.value.hint


def test_the_payloads_start_comes_between(ready, tmp_path):
    starting = dataclasses.replace(ready, start="/payload/start")
    command = inside(launch(starting, str(tmp_path)), ready.image)
    assert command[:2] == ["/payload/start", "/usr/bin/python3"]


def test_bytecode_is_laid_over_while_it_is_there(ready, tmp_path):
    bytecode = tmp_path / "bytecode.sqfs"
    with_it = dataclasses.replace(ready, bytecode=str(bytecode))
    assert "--overlay" not in launch(with_it, str(tmp_path)).argv
    bytecode.touch()
    argv = list(launch(with_it, str(tmp_path)).argv)
    assert argv[argv.index("--overlay") + 1] == f"{bytecode}:ro"


def test_no_bytecode_of_a_source_that_is_replaced(ready, tmp_path):
    bytecode = tmp_path / "bytecode.sqfs"
    bytecode.touch()
    mine = dataclasses.replace(
        ready, bytecode=str(bytecode), binds=("/mine.py:/payload/its.py:ro",)
    )
    assert "--overlay" not in launch(mine, "/run").argv


def test_containers_with_and_without_bytecode_are_not_the_same(ready):
    assert dataclasses.replace(ready, bytecode="/x").run_key != ready.run_key


def test_an_image_without_a_shell_is_a_typed_error(start) -> None:
    """Its layers cannot be looked for."""
    said = f"echo 'FATAL:   {NO_SHELL}' >&2; exit 255"
    with pytest.raises(TaskError) as caught:
        start(Launch(("/bin/sh", "-c", said), {"PATH": "/usr/bin:/bin"}, "/"))
    assert caught.value.code == "no-shell"
    assert "build.strategy: flat" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpu": "nvidia"}, ["--nv"]),
        ({"gpu": "rocm"}, ["--rocm"]),
        ({"options": ("--writable-tmpfs", "--no-home")}, ["--writable-tmpfs"]),
        ({"options": ("--nv",)}, ["--nv"]),
        ({}, []),
    ],
)
def test_options_are_apptainers_and_not_the_programs(
    ready, tmp_path, changes, expected
) -> None:
    order = dataclasses.replace(ready, **changes)
    for made in (
        launch(order, str(tmp_path)),
        launch_shell(order, str(tmp_path), ("true",), {}),
        launch_program(order, ["true"], str(tmp_path), [], {}),
    ):
        argv = list(made.argv)
        before = argv[: argv.index(order.image)]
        flags = {"--nv", "--rocm", "--writable-tmpfs"}
        assert [word for word in before if word in flags] == expected
        assert not flags & set(inside(made, order.image))


def test_an_image_without_python_starts_no_agent(ready, tmp_path) -> None:
    with pytest.raises(TaskError) as caught:
        launch(dataclasses.replace(ready, python=None), str(tmp_path))
    assert caught.value.code == "no-python"


def test_names_that_no_shell_could_export_stay_outside(ready, tmp_path) -> None:
    made = launch_shell(
        ready, str(tmp_path), ("true",), {"GC_A": "1", "SLURM_B%c": "2"}
    )
    assert made.env["APPTAINERENV_GC_A"] == "1"
    assert not [name for name in made.env if "SLURM_B" in name]
