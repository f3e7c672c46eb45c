"""The site's own package sources inside builds, and nothing of them afterwards."""

from __future__ import annotations

import base64
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.apptainer

SECRET = "hunter22sekrit"
PACKAGE = "gca-site-only"


def make_wheel(folder: Path) -> Path:
    """A package that no public index has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gca_site_only-1.0-py3-none-any.whl"
    info = "gca_site_only-1.0.dist-info"
    files = {
        "gca_site_only.py": "where = 'site'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def make_index(folder: Path) -> Path:
    """``simple/`` whose pages link to ``../../files/``; returns ``simple``."""
    wheel = make_wheel(folder / "files")
    page = folder / "simple" / PACKAGE
    page.mkdir(parents=True)
    link = f'<a href="../../files/{wheel.name}">{wheel.name}</a>'
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    return folder / "simple"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """URL of an index that asks for user and password, with them in it."""
    make_index(tmp_path / "index")
    wanted = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "index"))

        def do_GET(self):
            if self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://me:{SECRET}@127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def assert_installed(workshop, built) -> None:
    assert f"{PACKAGE}==1.0" in built.probe.packages
    program = "import gca_site_only; print(gca_site_only.where)"
    assert workshop.inside("python3", "-c", program) == ["site"]


def test_credentials_work_and_stay_outside(workshop, guarded):
    workshop.environ["PIP_EXTRA_INDEX_URL"] = guarded
    workshop.environ["PIP_TRUSTED_HOST"] = "127.0.0.1"
    told = "cat /.gc-apptainer-build/environment.sh"
    built = workshop.build(pip=(PACKAGE,), post=("env", told))
    assert_installed(workshop, built)
    assert SECRET not in workshop.log.read_text()
    assert SECRET not in repr(workshop.told)
    assert SECRET not in repr(built)
    search = (
        f"grep -rl {SECRET} / --exclude-dir=proc --exclude-dir=sys --exclude-dir=tmp"
    )
    assert workshop.inside("sh", "-c", f"{search} 2>/dev/null; true") == []


def test_credentials_are_not_in_the_error(workshop, guarded):
    workshop.environ["PIP_INDEX_URL"] = guarded.replace("127.0.0.1", "127.0.0.2")
    error = workshop.error(pip=(PACKAGE,))
    assert error.stage == "pip"
    assert SECRET not in error.render()
    assert SECRET not in repr(error)
    assert SECRET not in workshop.log.read_text()


def test_a_local_index(workshop, tmp_path):
    index = make_index(tmp_path / "index")
    workshop.environ["PIP_EXTRA_INDEX_URL"] = f"file://{index}"
    assert_installed(workshop, workshop.build(pip=(PACKAGE,)))


def test_a_local_folder_of_wheels_and_no_index(workshop, tmp_path):
    make_wheel(tmp_path / "my wheels")
    (tmp_path / "wheels").symlink_to(tmp_path / "my wheels")
    workshop.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{tmp_path}/wheels"}
    assert_installed(workshop, workshop.build(pip=(PACKAGE,)))
    error = workshop.error(pip=("humanize",))
    assert error.code == "package-not-found"


def test_uvs_own_file(workshop, tmp_path):
    make_wheel(tmp_path / "wheels")
    config = tmp_path / "uv.toml"
    config.write_text('index-url = "https://127.0.0.1:1/simple"\n')
    workshop.environ["UV_CONFIG_FILE"] = str(config)
    error = workshop.error(pip=("humanize",))
    assert error.code == "index-unreachable"
    assert "https://127.0.0.1:1/simple" in error.render()


def test_build_env_reaches_the_build(workshop):
    config = workshop.config(env=(("SITE_SETTING", "it's $HOME"),))
    workshop.build(config=config, post=('echo "$SITE_SETTING" >/setting',))
    assert workshop.inside("cat", "/setting") == ["it's $HOME"]


def test_the_ca_bundle_is_seen_and_not_kept(workshop):
    workshop.build(post=('test -s "$SSL_CERT_FILE"', "echo $SSL_CERT_FILE >/ca"))
    (path,) = workshop.inside("cat", "/ca")
    assert workshop.inside("sh", "-c", f"test -e {path} || echo gone") == ["gone"]
