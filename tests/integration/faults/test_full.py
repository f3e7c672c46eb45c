"""No room at any point of a request: a typed error, nothing left, then all is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FULL = Path(__file__).with_name("full.py")


def test_every_write_may_meet_a_full_disk(tmp_path: Path) -> None:
    places = [tmp_path / "cache", tmp_path / "scratch"]
    for place in places:
        place.mkdir()
    flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    script = 'mount -t tmpfs -o size=2m,mode=755 none "$1"; exec "$2" "$3" "$1" "$4"'
    arguments = [str(places[0]), sys.executable, str(FULL), str(places[1])]
    argv = ["unshare", *flags, "/bin/sh", "-euc", script, "sh", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    print(told)
    assert set(told["outcomes"]) == {"disk-full", "right"}
    assert told["outcomes"]["disk-full"] > 20
    assert told["left"] == []
