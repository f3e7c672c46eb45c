"""What a task sees of an image with every kind of layer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.endpoint.engine import ApptainerEngine
from provision.conda_channel import Channel, Package
from provision.web import Web, served

pytestmark = pytest.mark.apptainer

START = """\
#!/bin/sh
export STARTED="with $# arguments"
exec "$@"
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with served(tmp_path_factory.mktemp("web")) as made:
        yield made


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = Channel(tmp_path_factory.mktemp("channel"))
    tool = "#!/bin/sh\necho tool of conda\n"
    made.add(Package("tool", files={"bin/tool": tool, "bin/tree": tool}))
    return made.url


@pytest.fixture(scope="module")
def payload(web: Web) -> str:
    files = {
        "work_of_mine.py": "answer = 42\n",
        "start": START,
        "postBuild": "#!/bin/sh\npwd >made-by-post-build\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"repository-main/{name}")
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    return web.serve("/it.tar", buffer.getvalue())


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., ApptainerEngine], registry: str, channel: str):
    return make_engine(
        {
            "build": {"http_registries": [registry], "conda_channels": [channel]},
            "policy": {"allow_post": True, "payload_urls": ["http://127.0.0.1:*"]},
        }
    )


@pytest.fixture
def everything(spec: dict[str, Any], payload: str) -> dict[str, Any]:
    return {
        **spec,
        "apt": ["tree"],
        "conda": ["tool"],
        "payload_url": payload,
        "post": ['echo "$ONLY_THEN" >/seen-by-post'],
        "env": {"ALWAYS": "a b"},
        "build_env": {"ONLY_THEN": "at build time"},
    }


def surroundings() -> dict[str, Any]:
    import os
    import shutil
    import subprocess
    import sys

    import humanize
    import work_of_mine

    def said(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    return {
        "environ": dict(os.environ),
        "python": sys.executable,
        "humanize": humanize.__file__,
        "work": (work_of_mine.__file__, work_of_mine.answer),
        "tool": (shutil.which("tool"), said("tool")),
        "tree": [
            path
            for path in (f"{d}/tree" for d in os.get_exec_path())
            if os.access(path, os.X_OK)
        ],
        "post": open("/seen-by-post").read(),
        "post_build": open("/payload/made-by-post-build").read(),
    }


def test_a_task_sees_all_layers_in_their_order(
    engine, submit, value, everything
) -> None:
    found = value(submit(engine, everything, surroundings))
    environ = found["environ"]
    path = environ["PATH"].split(":")
    env, conda = "/.gc-apptainer/env/bin", "/.gc-apptainer/conda/bin"
    assert path[:2] == [env, conda]
    assert "/usr/bin" in path[2:]
    # The endpoint's own image is what comes last: conda hides apt.
    assert found["tree"][:2] == [f"{conda}/tree", "/usr/bin/tree"]
    assert found["tool"] == (f"{conda}/tool", "tool of conda\n")
    assert found["python"].startswith(env)
    assert found["humanize"].startswith("/.gc-apptainer/env/")
    assert found["work"] == ("/payload/work_of_mine.py", 42)
    assert environ["CONDA_PREFIX"] == "/.gc-apptainer/conda"
    assert found["post_build"] == "/payload\n"


def test_variables_of_build_and_task_do_not_mix(
    engine, submit, value, everything
) -> None:
    found = value(submit(engine, everything, surroundings))
    assert found["post"] == "at build time\n"
    assert "ONLY_THEN" not in found["environ"]
    assert found["environ"]["ALWAYS"] == "a b"


def test_the_payloads_start_runs_before_the_task(
    engine, submit, value, everything
) -> None:
    found = value(submit(engine, everything, surroundings))
    assert found["environ"]["STARTED"].startswith("with ")


def new_process() -> list[str]:
    import subprocess
    import sys

    argv = [sys.executable, "-v", "-c", "import humanize"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    return [line for line in said.splitlines() if line.startswith("# code object")]


def test_tasks_that_start_after_the_bytecode_is_there_use_it(
    engine, submit, value, everything
) -> None:
    value(submit(engine, everything, surroundings))
    engine._images.settle()
    lines = [
        line
        for line in value(submit(engine, everything, new_process))
        if "/.gc-apptainer/" in line
    ]
    assert lines
    assert [line for line in lines if not line.rstrip("'").endswith(".pyc")] == []


def test_the_manifest_says_it_all(engine, submit, unpack_result, everything) -> None:
    result = unpack_result(submit(engine, everything, surroundings).result(300))
    digest = result.details["container"]["image"]
    cache = Path(engine._config.cache_dir)
    (path,) = (cache / "v2/images").rglob(
        digest.removeprefix("sha256:") + "/manifest.json"
    )
    manifest = json.loads(path.read_text())
    kinds = [layer["kind"] for layer in manifest["layers"]]
    assert kinds == ["apt", "conda", "pip", "payload", "post"]
    assert {"base", *kinds} <= set(manifest["lock"])
    assert manifest["start"] == "/payload/start"
    assert set(manifest["stage_seconds"]) >= {"resolve", "pack", "probe", *kinds}
