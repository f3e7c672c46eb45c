"""The directories of ``tests/repos``, each through the whole builder."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from globus_compute_apptainer.build.apptainer import run
from globus_compute_apptainer.errors import BuildError, SpecError
from globus_compute_apptainer.spec.model import ImageSpec
from provision.conda_channel import Channel, Package

from .conftest import Workshop

pytestmark = pytest.mark.apptainer

REPOS = Path(__file__).parents[2] / "repos"
NAMES = sorted(path.name for path in REPOS.iterdir() if path.is_dir())

# Stands for R, which is large: "runs" a script by copying it to where it should write.
R_STAND_IN = """\
#!/bin/sh
for script; do :; done
cp "$script" made-by-install-R
"""
PACKAGES = (
    Package(
        "alpha",
        files={"bin/alpha": "#!/bin/sh\necho alpha of conda\n"},
        executable=frozenset({"bin/alpha"}),
    ),
    Package("beta", depends=["alpha <1"]),
    Package(
        "r-stand-in",
        files={"bin/Rscript": R_STAND_IN},
        executable=frozenset({"bin/Rscript"}),
    ),
)


@pytest.fixture(scope="module")
def workshop(apptainer, registry, tmp_path_factory) -> Workshop:
    """One for all, so that the base is brought here once."""
    return Workshop(apptainer, registry, tmp_path_factory.mktemp("repos"))


@pytest.fixture(scope="module")
def channel(tmp_path_factory) -> str:
    made = Channel(tmp_path_factory.mktemp("channel"))
    made.add(*PACKAGES)
    return made.url


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """``served(directory)`` is the URL of an archive of it, as forges make them."""
    archives: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = archives[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    def serve(folder: Path) -> str:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(folder, f"{folder.name}-main", filter=_not_ours)
        path = f"/{folder.name}.tar.gz"
        archives[path] = buffer.getvalue()
        return f"http://127.0.0.1:{server.server_port}{path}"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield serve
        server.shutdown()
        thread.join()


def _not_ours(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("/expect-refused") else entry


@pytest.mark.parametrize("name", NAMES)
def test_directory(name, workshop: Workshop, channel, served) -> None:
    image = ImageSpec(
        f"{workshop.registry}/python:3.11-slim", "docker", payload=served(REPOS / name)
    )
    config = workshop.config(conda_channels=(channel,))
    expected = REPOS / name / "expect-refused"
    if expected.exists():
        with pytest.raises((BuildError, SpecError)) as caught:
            workshop.build_spec(image, config)
        code, *words = expected.read_text().splitlines()
        assert caught.value.code == code, str(caught.value)
        assert [word for word in words if word not in str(caught.value)] == []
        return
    workshop.build_spec(image, config)
    said: list[str] = []
    argv = workshop.apptainer.exec_argv(
        workshop.image,
        ["/payload/verify"],
        options=["--no-home", "--no-mount", "cwd,tmp"],
        cwd="/payload",
    )
    env = workshop.apptainer.environment()
    ended = run(argv, env=env, timeout=60, on_line=said.append)
    assert ended.ok, "\n".join(said)


def test_start_is_told(workshop: Workshop, served) -> None:
    for name, start in (("start", "/payload/start"), ("nothing", None)):
        image = ImageSpec(
            f"{workshop.registry}/python:3.11-slim",
            "docker",
            payload=served(REPOS / name),
        )
        assert workshop.build_spec(image).start == start
