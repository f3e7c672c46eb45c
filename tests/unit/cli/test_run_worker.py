"""``run-worker``: what it becomes, and what it says when it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.cli import main, run_worker
from globus_compute_apptainer.store.manifest import Manifest
from globus_compute_apptainer.worker import launch as launching
from globus_compute_apptainer.worker.launch import Launch

MANIFEST: dict[str, Any] = {
    "spec_digest": "sha256:1", "image_digest": "sha256:2", "size": 10, "spec": {},
    "base": "docker://x", "base_digest": None, "os": "", "platform": "linux/amd64",
    "python": "/usr/bin/python3", "python_version": "3.11.2", "build_seconds": 1.0,
    "apptainer_version": "1.4.5", "builder_version": "0", "created": "",
}  # fmt: skip
WORKER_POOL = ["globus-compute-endpoint", "python-exec", "pool", "--debug"]


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Runs the verb with an image that is there; holds what it became."""
    image = tmp_path / "image.sif"
    image.write_bytes(b"0123456789")
    found: dict[str, Any] = {}

    def become(launch: Launch) -> None:
        found["launch"] = launch

    def obtain(wanted: Any, *_: Any) -> Any:
        manifest = Manifest(**MANIFEST, packages=found.get("packages", ()))
        stored = SimpleNamespace(path=image, manifest=manifest, bytecode=None)
        found["wanted"] = wanted
        return SimpleNamespace(image=stored)

    monkeypatch.setattr(run_worker.Store, "use", lambda *_: found.get("lease", 1))
    monkeypatch.setattr(run_worker, "become", become)
    monkeypatch.setattr(run_worker, "obtain", obtain)
    monkeypatch.setattr(
        launching, "_apptainer", lambda _name: Apptainer("/bin/apptainer", "1.4.5")
    )
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "containers.yaml"
    images = {"ml": {"base_image": "x", "env": {"OWN": "1"}, "gpu": "nvidia"}}
    block = {"images": images, "run": {"options": ["--writable-tmpfs"]}}
    file.write_text(json.dumps({"containers": block}))
    return str(file)


def test_it_becomes_the_command_in_the_image(
    became: Mapping[str, Any], config: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("APPTAINERENV_LEAK", "x")
    options = ["--config", config, "--image", "ml", "--bind", "/run:/run:ro"]
    main.main(["run-worker", *options, "--", "sh", "-c", "echo {x} $y"])
    launch = became["launch"]
    argv = list(launch.argv)
    assert argv[:2] == ["/bin/apptainer", "exec"]
    assert argv[-3:] == ["sh", "-c", "echo {x} $y"]
    binds = [argv[at + 1] for at, word in enumerate(argv) if word == "--bind"]
    assert binds == ["/run:/run:ro", f"{tmp_path}:{tmp_path}"]
    assert "--nv" in argv and "--writable-tmpfs" in argv
    inside = {k: v for k, v in launch.env.items() if k.startswith("APPTAINERENV_")}
    assert inside["APPTAINERENV_SLURM_JOB_ID"] == "7"
    assert inside["APPTAINERENV_OWN"] == "1"
    assert "APPTAINERENV_LEAK" not in inside
    assert became["wanted"].image.base_image == "x:latest"


def test_an_image_without_a_worker_is_refused_for_a_worker_pool(
    became: dict[str, Any], config: str, capsys
) -> None:
    argv = ["run-worker", "--config", config, "--image", "ml", "--", *WORKER_POOL]
    assert main.main(argv) == 2
    said = capsys.readouterr().err
    assert "[worker-missing]" in said and "globus-compute-endpoint==" in said
    assert "launch" not in became
    became["packages"] = ("globus-compute-endpoint==4.19.0",)
    main.main(argv)
    assert list(became["launch"].argv[-4:]) == WORKER_POOL


def test_an_image_that_goes_meanwhile(became, config: str, capsys) -> None:
    became["lease"] = None
    argv = ["run-worker", "--config", config, "--image", "ml", "--", "true"]
    assert main.main(argv) == 1
    assert "[image-not-built]" in capsys.readouterr().err


def test_an_image_that_is_not_there(became, config: str, capsys) -> None:
    for image in ("none", "sha256:" + "0" * 64):
        argv = ["run-worker", "--config", config, "--image", image, "--", "true"]
        assert main.main(argv) == 1
        assert "[image-not-built]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--", "true"],
        ["--image", "x"],
        ["--image", "x", "--"],
        ["--image", "x", "--spec", "{}", "--", "true"],
    ],
)
def test_wrong_usage(argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["run-worker", *argv])
    assert ended.value.code == 2


BECOME = """
import os, signal, sys
from globus_compute_apptainer.cli.run_worker import become
from globus_compute_apptainer.worker.launch import Launch
become(Launch(("/bin/sh", "-c", sys.argv[1]), {"ONLY": "x"}, "/"))
"""


@pytest.mark.parametrize(
    ("script", "returncode"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)]
)
def test_the_end_is_the_programs(script: str, returncode: int) -> None:
    argv = [sys.executable, "-c", BECOME, script]
    assert subprocess.run(argv, timeout=60).returncode == returncode


def test_it_is_the_same_process_with_usual_signals() -> None:
    script = "echo $$ $ONLY ${HOME-none}; grep SigIgn /proc/$$/status"
    process = subprocess.Popen(
        [sys.executable, "-c", BECOME, script], stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(timeout=60)
    first, ignored = said.splitlines()
    assert first == f"{process.pid} x none"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert os.getpid() != process.pid
