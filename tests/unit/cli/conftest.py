"""A machine on which all is well, until a test says otherwise."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.cli import main
from globus_compute_apptainer.cli.host import Host, Mount, Ran, Reply
from globus_compute_apptainer.cli.inputs import Settings
from globus_compute_apptainer.config import BuildConfig, ContainersConfig

USER_NAMESPACES = Apptainer("/usr/bin/apptainer", "1.4.5", (), ("--fakeroot",))
GB = 1000**3


class FakeHost(Host):
    """Answers from dictionaries; a test takes away or changes what it likes."""

    def __init__(self) -> None:
        self.environ = {"PATH": "/usr/bin", "HOME": "/nowhere"}
        self.uid, self.user = 1000, "ada"
        self.prefix = Path("/venv")
        self.found: Apptainer | Exception = USER_NAMESPACES
        self.files = {
            "/etc/subuid": "ada:100000:65536",
            "/etc/subgid": "1000:100000:65536",
            "/proc/sys/user/max_user_namespaces": "15000",
            "/etc/apptainer/apptainer.conf": "enable overlay = try\n# enable x = no",
        }
        self.programs = {
            name: Path("/usr/bin", name)
            for name in "squashfuse_ll fuse2fs fuse-overlayfs fakeroot newuidmap"
            " newgidmap mksquashfs git".split()
        }
        self.programs["globus-compute-endpoint"] = Path(
            "/venv/bin/globus-compute-endpoint"
        )
        self.programs["uv"] = Path("/venv/bin/uv")
        self.setuid: set[Path] = set()
        self.ran = {
            "apptainer": Ran(0, "LIBEXECDIR=/usr/libexec\nnoise"),
            "unshare": Ran(0, ""),
            "mksquashfs": Ran(1, "Compressors available:\n\tgzip\n\tzstd"),
            "python": Ran(0, "globus_compute_apptainer.endpoint.engine"),
            "uv": Ran(0, "uv 0.9.1"),
        }
        self.problems: dict[str, str] = {}
        self.clock: float | None = 0.2
        self.caches: set[Path] = set()
        self.bytes_free: Mapping[Path, int] = {}
        self.mounted = Mount("/", "ext4")
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []

    def apptainer(self) -> Apptainer:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def text(self, path: Path | str) -> str | None:
        return self.files.get(str(path))

    def program(self, name: str, *folders: Path | str) -> Path | None:
        return self.programs.get(name)

    def set_user_id(self, path: Path) -> bool:
        return path in self.setuid

    def run(self, argv: Sequence[str], **_: Any) -> Ran:
        name = Path(argv[0]).name
        return self.ran["python" if name.startswith("python") else name]

    def open_error(self, path: Path | str) -> str:
        return self.problems.get(f"open {path}", "")

    def existing(self, path: Path) -> Path:
        return path

    def write_error(self, folder: Path) -> str:
        return self.problems.get("write", "")

    def lock_error(self, folder: Path) -> str:
        return self.problems.get("lock", "")

    def clock_difference(self, folder: Path) -> float | None:
        return self.clock

    def is_cache(self, path: Path) -> bool:
        return path in self.caches

    def free(self, path: Path) -> int:
        return self.bytes_free.get(path, 100 * GB)

    def mount(self, path: Path) -> Mount:
        return self.mounted

    def scratch(self, config: BuildConfig) -> Path:
        return Path("/dev/shm")

    def fetch(self, url: str, ca_bundle: Path | None = None) -> Reply:
        self.asked.append(url)
        return self.replies.get(url, Reply(200))


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def settings() -> Settings:
    block = {"cache_dir": "/cache"}
    return Settings(block, ContainersConfig.parse(block))


SHA = "0123456789abcdef" * 4
LOCK = {
    "format": 1,
    "base": {
        "reference": "docker://python:3.11-slim",
        "digest": f"sha256:{SHA}",
        "resolved_at": "2026-11-20T12:00:00+00:00",
    },
    "pip": {
        "packages": [
            {"name": "pandas", "version": "2.3.0", "hashes": [f"sha256:{SHA}"]}
        ]
    },
    "tools": {"uv": "0.9.1"},
}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def locking(builder: Any) -> Any:
    """The builder that needs no Apptainer, and says what it made images from."""
    build = builder.build
    builder.lock = LOCK

    def locked(*arguments: Any, **options: Any) -> Any:
        return dataclasses.replace(build(*arguments, **options), lock=builder.lock)

    builder.build = locked
    return builder


@pytest.fixture
def without_apptainer(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apptainer, "find", lambda _: USER_NAMESPACES)
    name = "globus_compute_apptainer.build.builder"
    module = SimpleNamespace(Builder=lambda *_: builder)
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_apptainer: None
) -> Call:
    """``call("build", SPEC)`` → status, standard output, standard error."""
    config = tmp_path / "config.yaml"
    config.write_text(f"containers: {{build: {{tmp_dir: {tmp_path}}}}}")

    def call(*arguments: str) -> tuple[int, str, str]:
        verb, *rest = arguments
        cache = ["--config", str(config), "--cache-dir", str(tmp_path / "cache")]
        status = main.main([verb, *cache, *rest])
        return status, *capsys.readouterr()

    return call
