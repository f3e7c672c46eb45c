"""Eight processes, twenty specs, and random deaths: nothing wrong, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HAMMER = Path(__file__).with_name("hammer.py")
SPECS = 20


def hammer(tmp_path: Path, **how: int) -> dict[str, Any]:
    settings = {"processes": 8, "requests": 200, "kills": 60, "seed": 1, "limit": 0}
    settings.update(how)
    places = [tmp_path / "cache", tmp_path / "scratch"]
    places[1].mkdir()
    numbers = [str(number) for number in settings.values()]
    argv = [sys.executable, str(HAMMER), *map(str, places), *numbers]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    print(told)
    return told


def check(told: dict[str, Any], *, wanted: int) -> None:
    assert told["wrong"] == []
    assert told["right"] >= wanted
    left = {name: told[name] for name in ("tmp", "locks", "leases", "scratch")}
    assert left == {name: [] for name in left}


COUNTS = [
    pytest.param(200, 60, id="200"),
    pytest.param(1000, 300, id="1000", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("requests", "kills"), COUNTS)
def test_every_request_that_survives_gets_its_image_and_one_build_does(
    tmp_path: Path, requests: int, kills: int
) -> None:
    told = hammer(tmp_path, requests=requests, kills=kills)
    check(told, wanted=8 * requests)
    assert told["images"] == told["whole"] == SPECS
    assert SPECS <= told["builds"] <= SPECS + told["killed"]


@pytest.mark.parametrize(("requests", "kills"), COUNTS)
def test_the_same_while_room_is_made_all_the_time(
    tmp_path: Path, requests: int, kills: int
) -> None:
    limit = 600_000
    told = hammer(tmp_path, requests=requests, kills=kills, seed=2, limit=limit)
    check(told, wanted=8 * requests)
    assert told["bytes"] <= limit
    assert told["images"] == told["whole"]
