"""What people get wrong, through all of it: a typed error, nothing left, and the next
spec works."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.errors import BuildError, ContainerError, SpecError
from provision.conda_channel import Channel, Package
from provision.web import Web, make_repository
from provision.wheels import make_wheel

if TYPE_CHECKING:
    from .conftest import Endpoint

pytestmark = pytest.mark.apptainer


def check(error: ContainerError, code: str, stage: str, *words: str) -> None:
    """A sentence that says why and where, and a log that ends with it."""
    assert isinstance(error, BuildError)
    assert (error.code, error.stage) == (code, stage), error.render()
    assert [word for word in words if word not in error.render()] == []
    assert "Traceback" not in error.render()
    log = Path(error.log).read_text()
    assert log.endswith(f"\n=== failed in {stage}: {code}\n")


@pytest.fixture
def bad(endpoint: Endpoint) -> Callable[..., ContainerError]:
    """``bad(pip=[…])`` is the error of such a spec; then a good one is built."""

    def bad(config: dict[str, Any] | None = None, **spec: Any) -> ContainerError:
        error = endpoint.error(spec, config=config)
        assert endpoint.left() == []
        again = endpoint.get(endpoint.good, fresh=True)
        assert again.cache == "built"
        program = "import alpha; print(alpha.version)"
        assert endpoint.inside(again.image.path, "python3", "-c", program) == "1.0"
        return error

    return bad


def test_requirements_that_do_not_go_together(bad, endpoint: Endpoint) -> None:
    make_wheel(endpoint.links, "wants-new", "1.0", ["alpha>=2"])
    error = bad(pip=["wants-new", "alpha<2"])
    check(error, "package-conflict", "pip", "do not go together", "wants-new")


def test_a_version_that_nobody_has(bad) -> None:
    check(bad(pip=["alpha==99"]), "package-not-found", "pip", "alpha==99")


def test_a_wheel_for_another_python_only(bad, endpoint: Endpoint) -> None:
    tag = "cp38-cp38-manylinux_2_17_x86_64"
    make_wheel(endpoint.links, "otherpy", "1.0", tag=tag)
    check(bad(pip=["otherpy"]), "package-not-found", "pip", "otherpy", "other Pythons")


@pytest.mark.parametrize("way", ["files", "url"])
def test_a_file_that_is_not_what_its_hash_says(
    bad, endpoint: Endpoint, web: Web, way: str
) -> None:
    wrong = f"sha256={'0' * 64}"
    if way == "files":
        text = f"alpha==1.0 --hash={wrong.replace('=', ':')}\n"
        error = bad(files={"requirements.txt": text})
    else:
        wheel = make_wheel(endpoint.folder / "elsewhere", "remote", "1.0")
        url = web.serve(f"/{wheel.name}", wheel.read_bytes())
        error = bad(pip=[f"remote @ {url}#{wrong}"])
    check(error, "hash-mismatch", "pip", "alpha" if way == "files" else "remote")


def test_a_version_that_was_withdrawn(bad, endpoint: Endpoint, web: Web) -> None:
    rows = []
    for version, yanked in (("1.0", ""), ("2.0", ' data-yanked="wrong"')):
        wheel = make_wheel(endpoint.folder / "index", "drawn", version)
        url = web.serve(f"/files/{wheel.name}", wheel.read_bytes())
        rows.append(f'<a href="{url}"{yanked}>{wheel.name}</a>')
    page = f"<html><body>{''.join(rows)}</body></html>".encode()
    web.serve("/simple/drawn/", page, Content_Type="text/html")
    web.status("/simple/alpha/", 404)
    endpoint.environ |= {"PIP_NO_INDEX": "", "PIP_INDEX_URL": f"{web.url}/simple"}
    try:
        check(bad(pip=["drawn>=2"]), "package-not-found", "pip", "withdrawn", "drawn")
    finally:
        endpoint.environ.clear()


def test_a_debian_package_that_does_not_exist(bad) -> None:
    error = bad(apt=["no-such-debian-package"])
    check(error, "package-not-found", "apt", "no-such-debian-package")


def test_a_conda_package_that_nobody_has(bad, tmp_path: Path) -> None:
    channel = Channel(tmp_path / "channel")
    channel.add(Package("beta", depends=["gone >=2"]))
    config = {"build": {"conda_channels": [channel.url]}}
    error = bad(config, conda=["beta"])
    assert error.code in {"package-not-found", "package-conflict"}
    check(error, error.code, "conda", "gone")


BROKEN = "dependencies:\n  - pandas\n  pip: [\n"


def test_a_broken_environment_in_the_spec(bad) -> None:
    error = bad(files={"environment.yml": BROKEN})
    assert isinstance(error, SpecError)
    assert error.code == "spec-invalid"
    assert "environment.yml" in error.render()
    assert re.search(r"line \d", error.render())


def archived(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            entry.mode = 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_a_broken_environment_in_the_payload(bad, web: Web) -> None:
    url = web.serve("/it.tar.gz", archived({"environment.yml": BROKEN, "x": ""}))
    error = bad(payload_url=url)
    check(error, "payload-invalid", "payload", "environment.yml", "line")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_leads_out(bad, web: Web, kind: str, tmp_path: Path) -> None:
    if kind == "tar":
        data = archived({"fine.py": "", "../../../evil": "evil"})
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("fine.py", "")
            archive.writestr("../../../evil", "evil")
        data = buffer.getvalue()
    error = bad(payload_url=web.serve(f"/it.{kind}", data))
    check(error, "payload-invalid", "payload", "../evil", "leads out")


@pytest.mark.parametrize("how", ["says so", "without end", "unpacked"])
def test_an_archive_of_ten_gigabytes(bad, web: Web, how: str) -> None:
    """No more of it is taken than is allowed."""
    ten = 10 * 10**9
    sent: list[int] = []
    if how == "unpacked":
        head = tarfile.TarInfo("large")
        head.size = ten
        url = web.serve("/it.tar", head.tobuf() + bytes(10**6))
    else:

        def answer(request) -> None:
            request.send_response(200)
            if how == "says so":
                request.send_header("Content-Length", str(ten))
            request.send_header("Connection", "close")
            request.end_headers()
            request.close_connection = True
            while len(sent) < ten >> 20:
                request.wfile.write(bytes(1 << 20))
                sent.append(1)

        web.answers["/it.tar"] = answer
        url = f"{web.url}/it.tar"
    error = bad({"build": {"max_payload_size": "20MB"}}, payload_url=url)
    check(error, "payload-too-large", "payload", "MB that this endpoint allows")
    assert len(sent) < 100


def test_a_git_ref_that_does_not_exist(bad, web: Web) -> None:
    make_repository(web, "code", {"work.py": ""})
    error = bad(payload_url=f"git+{web.url}/git/code#no-such-branch")
    check(error, "payload-not-found", "payload", "no-such-branch")


@pytest.mark.parametrize("way", ["files", "payload"])
def test_a_post_build_that_fails(bad, web: Web, way: str) -> None:
    script = "#!/bin/sh\necho begun\nls /no/such/file\necho not reached\n"
    script = script.replace("echo begun", "set -e; echo begun")
    if way == "files":
        error = bad(files={"postBuild": script})
    else:
        url = web.serve("/it.tar.gz", archived({"postBuild": script, "x.py": ""}))
        error = bad(payload_url=url)
    check(error, "build-failed", "post", "begun", "/no/such/file", "postBuild")
    assert "not reached" not in error.render()


def test_a_payload_that_asks_for_what_policy_forbids(bad, web: Web) -> None:
    script = "#!/bin/sh\ntrue\n"
    url = web.serve("/it.tar.gz", archived({"postBuild": script, "x.py": ""}))
    error = bad({"policy": {"allow_post": False}}, payload_url=url)
    check(error, "policy-denied", "policy", "postBuild")
