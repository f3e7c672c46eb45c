"""Two machines on one cache: host names and process ids of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MACHINE = Path(__file__).with_name("machine.py")


def start(name: str, cache: Path, scratch: Path, do: str) -> subprocess.Popen[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = 'hostname "$1"; shift; exec "$@"'
    argv = [
        *("unshare", *user, "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("/bin/sh", "-euc", script, "sh", name),
        *(sys.executable, str(MACHINE), str(cache), str(scratch), do),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env=env, stdout=pipe, stderr=pipe, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "cache", tmp_path / "scratch"


def test_two_machines_and_two_namespaces_share_a_cache(places) -> None:
    running = [start(f"node{number}", *places, "all") for number in (1, 2)]
    one, two = map(answer, running)
    assert one["host"] != two["host"]
    assert one["namespace"] != two["namespace"]
    assert one["right"] and two["right"]
    assert one["built"] + two["built"] == 20


def test_a_machine_that_died_is_replaced_and_what_it_left_is_cleared(places) -> None:
    with start("node1", *places, "hold") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGKILL)
    assert len(list((places[0] / "v2/tmp").iterdir())) == 1
    told = answer(start("node2", *places, "take"))
    assert (told["right"], told["built"], told["left"]) == (True, 1, [])
