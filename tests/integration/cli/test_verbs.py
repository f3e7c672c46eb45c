"""The verbs on a real Apptainer, a real registry and the site's package index."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.cli.conftest import Site

Left = Callable[[], list[str]]

pytestmark = pytest.mark.apptainer

FILE = """\
import there_is_no_such_module

def inside(x, word="none"):
    import importlib.util, iniconfig, os, sys
    return {
        "x": x,
        "word": word,
        "iniconfig": iniconfig.__file__,
        "image": os.environ["APPTAINER_CONTAINER"],
        "endpoint": importlib.util.find_spec("globus_compute_endpoint") is not None,
    }

def fails(x):
    raise KeyError(f"no {x} here")
"""


def test_an_image_is_built_once_listed_and_tried(
    site: Site, left_running: Left
) -> None:
    built = site.json("build", "small")
    assert built["cache"] == "built"
    assert built["seconds"] > 0
    assert any(p.startswith("iniconfig==") for p in built["packages"])
    assert built["python_version"].startswith("3.11.")
    assert Path(built["path"]).stat().st_size == built["size"]

    again = site.json("build", '{"python": "3.11", "pip": ["iniconfig"]}')
    assert (again["cache"], again["seconds"]) == ("hit", 0)
    assert again["path"] == built["path"]

    (listed,) = site.json("images")
    assert listed["image_digest"] == built["image_digest"]
    table = site.run("images").stdout
    assert built["spec_digest"].removeprefix("sha256:")[:12] in table
    assert "small" in table

    file = site.config.parent / "work.py"
    file.write_text(FILE)
    tried = site.json("try", "small", "--", "python", "work.py:inside", "[1]", "two")
    assert tried["container"]["cache"] == "hit"
    assert tried["container"]["image"] == built["image_digest"]
    assert tried["result"]["x"] == [1]
    assert tried["result"]["word"] == "two"
    assert tried["result"]["image"] == built["path"]
    assert tried["result"]["endpoint"] is False
    assert left_running() == []


def test_what_a_function_raises_is_shown(site: Site) -> None:
    (site.config.parent / "work.py").write_text(FILE)
    ran = site.run("try", "small", "--", "python", "work.py:fails", "bread")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "KeyError: 'no bread here'" in ran.stderr


def test_a_build_that_fails_says_why(site: Site) -> None:
    spec = '{"python": "3.11", "pip": ["no-such-package-for-sure"]}'
    ran = site.run("build", "--json", spec)
    assert (ran.returncode, ran.stdout) == (1, "")
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("package-not-found", "pip")
    assert any("no-such-package-for-sure" in line for line in error["tail"])
    assert Path(error["log"]).is_file()
    (site.config.parent / "work.py").write_text(FILE)
    ran = site.run("try", spec, "--", "python", "work.py:inside", "1")
    assert ran.returncode == 1
    assert "stage: pip" in ran.stderr
    assert "no-such-package-for-sure" in ran.stderr


@pytest.mark.parametrize(
    ("verb", "command"),
    [("build", ()), ("try", ("--", "python", "work.py:inside", "1"))],
)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_build_leaves_nothing(
    site: Site,
    left_running: Left,
    verb: str,
    command: tuple[str, ...],
    number: signal.Signals,
    status: int,
) -> None:
    (site.config.parent / "work.py").write_text(FILE)
    spec = f'{{"python": "3.11", "post": ["echo {verb} {status}; sleep 600"]}}'
    with subprocess.Popen(
        site.argv(verb, "--verbose", spec, *command),
        stderr=subprocess.PIPE,
        text=True,
        cwd=site.config.parent,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert any(line.endswith("post\n") for line in process.stderr)
        # A terminal sends it to every process of the foreground group.
        os.killpg(process.pid, number)
        rest = process.stderr.read()
    assert process.returncode == status, rest
    assert "Traceback" not in rest
    assert list(site.scratch.iterdir()) == []
    assert left_running() == []


def test_the_doctor_on_this_machine(site: Site) -> None:
    ran = site.run("doctor", "--json", "--deep")
    found = {finding["name"]: finding for finding in json.loads(ran.stdout)}
    for name in ("apptainer", "tiny image", "image cache", "cache locks", "mksquashfs"):
        assert found[name]["level"] == "ok", found[name]
    assert found["base registry"]["level"] == "ok", found["base registry"]
    failed = [f for f in found.values() if f["level"] == "fail"]
    assert ran.returncode == (3 if failed else 0)


def test_the_demo(provisioned: dict[str, str]) -> None:
    demo = Path(__file__).resolve().parents[3] / "examples" / "demo" / "run"
    ran = subprocess.run([demo], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "same again" in ran.stdout
    assert "yes the second task found the image" in ran.stdout
