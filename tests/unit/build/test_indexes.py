"""pip's and uv's own configuration, from real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.indexes import Indexes


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose every configuration directory is below ``tmp_path``."""
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pip(environ: dict[str, str], tmp_path: Path) -> Indexes:
    # The machine's own /etc/pip.conf has settings that a test must not depend on.
    return indexes.from_pip(environ, tmp_path / "prefix")


@pytest.fixture(autouse=True)
def no_etc(monkeypatch: pytest.MonkeyPatch):
    real = indexes._pip_files
    monkeypatch.setattr(
        indexes,
        "_pip_files",
        lambda *args: [path for path in real(*args) if path != Path("/etc/pip.conf")],
    )


def test_nothing_configured_is_pypi(home, tmp_path):
    assert pip(home, tmp_path) == Indexes()
    assert indexes.from_uv(home) is None


def test_files_in_pips_order_the_later_wins(home, tmp_path):
    places = [
        tmp_path / "xdg/pip/pip.conf",
        tmp_path / "home/.pip/pip.conf",
        tmp_path / "home/.config/pip/pip.conf",
        tmp_path / "prefix/pip.conf",
    ]
    for number, path in enumerate(places):
        write(path, f"[global]\nindex-url = https://index{number}/simple\n")
        assert pip(home, tmp_path).default == f"https://index{number}/simple"
    named = write(tmp_path / "own.conf", "[global]\nindex-url = https://named/simple\n")
    environ = {**home, "PIP_CONFIG_FILE": str(named)}
    assert pip(environ, tmp_path).default == "https://named/simple"
    environ["PIP_INDEX_URL"] = "https://env/simple"
    assert pip(environ, tmp_path).default == "https://env/simple"


def test_no_file_is_read_if_told_so(home, tmp_path):
    write(tmp_path / "home/.pip/pip.conf", "[global]\nindex-url = https://x/simple\n")
    assert pip({**home, "PIP_CONFIG_FILE": "/dev/null"}, tmp_path) == Indexes()


def test_every_option(home, tmp_path):
    write(
        tmp_path / "home/.config/pip/pip.conf",
        """\
[global]
index-url = https://a/simple
extra_index_url =
    https://b/simple
    https://c/simple
find-links = /wheels
trusted-host = a b
cert = /ca.pem
default-timeout = 60
proxy = http://proxy:3128
no-index = false
[install]
index-url = https://install/simple
[freeze]
timeout = 1
""",
    )
    assert pip(home, tmp_path) == Indexes(
        default="https://install/simple",
        extra=("https://b/simple", "https://c/simple"),
        links=("/wheels",),
        trusted=("a", "b"),
        timeout="60",
        proxy="http://proxy:3128",
        certificates="/ca.pem",
    )


def test_variables(home, tmp_path):
    environ = {
        **home,
        "PIP_EXTRA_INDEX_URL": "https://b/simple https://c/simple",
        "PIP_NO_INDEX": "yes",
        "PIP_DEFAULT_TIMEOUT": "180",
    }
    found = pip(environ, tmp_path)
    assert found.extra == ("https://b/simple", "https://c/simple")
    assert found.no_index
    assert found.timeout == "180"


@pytest.mark.parametrize("text", ["no section\n", "[global\n", "\0", "[global]\nx\n"])
def test_a_broken_file_is_passed_over(home, tmp_path, text):
    write(tmp_path / "home/.pip/pip.conf", text)
    assert pip(home, tmp_path) == Indexes()


def test_uv_variables_old_and_new():
    found = indexes.from_uv(
        {
            "UV_INDEX_URL": "https://old/simple",
            "UV_INDEX": "corp=https://b/simple",
            "UV_EXTRA_INDEX_URL": "https://c/simple",
            "UV_FIND_LINKS": "/a,/b https://d",
        }
    )
    assert found == Indexes(
        default="https://old/simple",
        extra=("corp=https://b/simple", "https://c/simple"),
        links=("/a", "/b", "https://d"),
        merge=False,
    )
    newer = {"UV_DEFAULT_INDEX": "https://new/simple", "UV_INDEX_URL": "https://old"}
    assert indexes.from_uv(newer).default == "https://new/simple"


def test_uv_file(home, tmp_path):
    system = write(tmp_path / "xdg/uv/uv.toml", "")
    assert indexes.uv_file(home) == system
    own = write(tmp_path / "home/.config/uv/uv.toml", "")
    assert indexes.uv_file(home) == own
    named = write(tmp_path / "named.toml", "")
    assert indexes.uv_file({**home, "UV_CONFIG_FILE": str(named)}) == named
    assert indexes.uv_file({**home, "UV_NO_CONFIG": "1"}) is None
