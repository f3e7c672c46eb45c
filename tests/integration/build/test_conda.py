"""Conda layers: a real local channel, the real solver, real images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build import inventory
from globus_compute_apptainer.build.conda.conda import conda_layer
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.python.environment import python_layer
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.conda import Conda, environment
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf
from provision.conda_channel import PLACEHOLDER, Channel, Package, served

pytestmark = pytest.mark.apptainer

PREFIX = "/.gc-apptainer/conda"
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "turtledemo"}

ALPHA = Package(
    "alpha",
    files={
        "bin/alpha": "#!@PREFIX@/bin/say\necho never\n",
        "bin/say": "#!/bin/sh\ncat @PREFIX@/share/alpha.txt\n",
        "share/alpha.txt": "alpha lives in @PREFIX@\n",
        "lib/alpha.bin": b"\x7fELF\x00@PREFIX@/lib\x00after\x00@PREFIX@\x00end",
    },
    links={"bin/alpha-link": "alpha"},
    binary=frozenset({"lib/alpha.bin"}),
)
ALPHA2 = Package("alpha", "2.0", files={"share/two": "2"})
BETA = Package("beta", depends=["alpha <2"], files={"share/b": "b"}, suffix=".conda")
GAMMA = Package("gamma", depends=["alpha >=2"], files={"share/gamma": "c"})
NEWER_LIBC = Package("newer", depends=["__glibc >=9.1"], files={"share/n": ""})


def python_package() -> Package:
    """This machine's Python as a conda package, its libraries beside it."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(os.path.realpath(sys._base_executable))
    library = Path(sysconfig.get_paths(vars={"base": sys.base_prefix})["stdlib"])
    files: dict[str, str | bytes] = {f"bin/python{minor}": program.read_bytes()}
    for path in library.rglob("*"):
        inner = path.relative_to(library)
        unwanted = {*SKIPPED, "__pycache__", "site-packages", "dist-packages"}
        if unwanted & set(inner.parts) or inner.parts[0].startswith("config-"):
            continue
        if path.is_file() and not path.name.startswith("sitecustomize"):
            files[f"lib/python{minor}/{inner}"] = path.read_bytes()
    own = "dist" if "deb_system" in sysconfig.get_scheme_names() else "site"
    packages = f"lib/python{minor}/{own}-packages"
    said = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    for line in said.splitlines():
        name, _, place = line.strip().partition(" => ")
        if place and not name.startswith(("libc.", "libm.", "ld-")):
            files[f"lib/{name}"] = Path(place.split()[0]).read_bytes()
    told = json.dumps({"LD_LIBRARY_PATH": "@PREFIX@/lib"})
    files["etc/conda/env_vars.d/python.json"] = told
    links = {f"bin/{name}": f"python{minor}" for name in ("python", "python3")}
    version = ".".join(map(str, sys.version_info[:3]))
    return Package(
        "python",
        version,
        files=files,
        links=links,
        suffix=".conda",
        site_packages=packages,
    )


PURE = Package(
    "pure",
    noarch="python",
    subdir="noarch",
    depends=["python >=3"],
    files={"site-packages/pure.py": "def main():\n    print('pure runs')\n"},
    entry_points=["pure = pure:main"],
)


@dataclasses.dataclass
class Kitchen:
    """Makes conda layers on one base, and runs what they hold."""

    make_job: Callable[..., Any]
    sif: Path
    channel: Channel
    folder: Path
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    python: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def below(self, job: Any) -> Below:
        found = inventory.take(job, self.sif)
        return Below("sha256:" + "0" * 64, self.sif, found)

    def job(self) -> Any:
        image = ImageSpec("base", "localimage", self.python)
        config = BuildConfig(
            **{"conda_channels": (self.channel.url,), "timeout": 120.0, **self.config}
        )
        return self.make_job(image, config=config, **self.changes)

    def layer(self, *specs: str, locked: Any = None, **conda: Any) -> Layer:
        wanted = environment("conda", {"dependencies": list(specs)}).conda
        job = self.job()
        return conda_layer(
            job,
            self.below(job),
            dataclasses.replace(wanted or Conda(()), **conda),
            Shelf(self.folder / "v2", "layers"),
            self.folder / "packages",
            locked=locked,
        )

    def error(self, *specs: str, **conda: Any) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.layer(*specs, **conda)
        assert caught.value.stage == "conda"
        return caught.value

    def run(self, layer: Layer, *command: str, over: Layer | None = None) -> list[str]:
        job = self.job()
        lines: list[str] = []
        above = ["--overlay", f"{over.file}:ro"] if over else []
        argv = job.apptainer.exec_argv(
            self.sif,
            command,
            options=[*above, "--overlay", f"{layer.file}:ro", "--no-home"],
            cwd="/",
        )
        env = job.apptainer.environment()
        assert job.attempt(argv, env=env, on_line=lines.append).ok, lines
        return [line for line in lines if not line.startswith("INFO:")]

    def listing(self, layer: Layer) -> str:
        argv = ["unsquashfs", "-lls", str(layer.file)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    made = Channel(tmp_path / "channel")
    made.add(ALPHA, ALPHA2, BETA, GAMMA, NEWER_LIBC)
    return made


@pytest.fixture
def kitchen(
    make_job: Callable[..., Any], nopython_sif: Path, channel: Channel, tmp_path: Path
) -> Kitchen:
    """On a base without Python."""
    return Kitchen(make_job, nopython_sif, channel, tmp_path)


def test_files_hold_the_prefix_of_the_image(kitchen: Kitchen) -> None:
    layer = kitchen.layer("beta")
    assert kitchen.run(layer, "say") == [f"alpha lives in {PREFIX}"]
    found = kitchen.run(layer, "cat", f"{PREFIX}/bin/alpha")
    assert found[0] == f"#!{PREFIX}/bin/say"
    assert kitchen.run(layer, "readlink", f"{PREFIX}/bin/alpha-link") == ["alpha"]
    target = kitchen.folder / "out"
    argv = ["unsquashfs", "-d", target, "-q", "-n", layer.file]
    subprocess.run(argv, check=True, stdout=-1)
    binary = (target / PREFIX[1:] / "lib/alpha.bin").read_bytes()
    assert len(binary) == len(b"\x7fELF\x00/lib\x00after\x00\x00end") + 2 * len(
        PLACEHOLDER
    )
    assert binary.startswith(b"\x7fELF\x00" + PREFIX.encode() + b"/lib\x00\x00")
    everything = b"".join(p.read_bytes() for p in target.rglob("*") if p.is_file())
    assert str(kitchen.folder / "scratch").encode() not in everything
    assert str(kitchen.folder / "packages").encode() not in everything


def test_the_lock_says_what_was_installed(kitchen: Kitchen) -> None:
    layer = kitchen.layer("beta")
    assert [p["name"] for p in layer.lock["packages"]] == ["alpha", "beta"]
    alpha = layer.lock["packages"][0]
    assert alpha["version"] == "1.0" and len(alpha["sha256"]) == 64
    assert alpha["url"].endswith("/linux-64/alpha-1.0-0.tar.bz2")
    assert layer.lock["channels"] == [kitchen.channel.url]
    assert layer.lock["virtual_packages"]["__glibc"].startswith("2.")
    assert layer.lock["solver"].startswith("rattler 0.")
    assert layer.marker in kitchen.listing(layer)


def test_the_prefix_is_first_on_the_path(kitchen: Kitchen) -> None:
    layer = kitchen.layer("alpha=1", variables=(("MINE", "it's $HOME"),))
    said = kitchen.run(layer, "sh", "-c", 'echo "$PATH"; echo "$MINE$CONDA_PREFIX"')
    assert said[0].startswith(f"{PREFIX}/bin:/")
    assert said[1] == f"it's $HOME{PREFIX}"


def test_a_base_without_python_gets_one(kitchen: Kitchen) -> None:
    kitchen.channel.add(python_package(), PURE)
    layer = kitchen.layer("pure")
    assert kitchen.run(layer, "pure") == ["pure runs"]
    job = kitchen.job()
    found = inventory.take(job, kitchen.sif, ["--overlay", f"{layer.file}:ro"])
    assert found.python is not None
    assert found.python.executable == f"{PREFIX}/bin/python3"
    assert found.python.prefix == PREFIX
    assert found.ours == ("conda",) or "conda" in found.ours


def test_pip_packages_lie_on_condas_python(kitchen: Kitchen) -> None:
    kitchen.channel.add(python_package(), PURE)
    layer = kitchen.layer("pure")
    job = kitchen.job()
    overlay = ["--overlay", f"{layer.file}:ro"]
    found = inventory.take(job, kitchen.sif, overlay)
    below = Below("sha256:" + "0" * 64, kitchen.sif, found, (layer,))
    shelf = Shelf(kitchen.folder / "v2", "layers")
    upper = python_layer(job, below, ["six"], shelf, kitchen.folder / "packages")
    assert upper is not None
    code = "import pure, six, sys; pure.main(); print(six.__name__, sys.base_prefix)"
    said = kitchen.run(layer, "python3", "-c", code, over=upper)
    assert said == ["pure runs", f"six {PREFIX}"]


def test_python_is_the_one_that_the_image_is_to_have(kitchen: Kitchen) -> None:
    for version in ("3.10.9", "3.12.1"):
        kitchen.channel.add(Package("python", version, files={"bin/python": ""}))
    kitchen.channel.add(PURE)
    kitchen.python = "3.10"
    versions = {p["name"]: p["version"] for p in kitchen.layer("pure").lock["packages"]}
    assert versions["python"] == "3.10.9"


def test_the_same_environment_is_made_once(kitchen: Kitchen) -> None:
    first = kitchen.layer("beta")
    state = first.file.stat()
    again = kitchen.layer("beta", "alpha=1")
    assert again == first and again.file.stat() == state


def test_activation_scripts_are_written_down_as_assignments(kitchen: Kitchen) -> None:
    scripts = {
        "etc/conda/activate.d/a.sh": 'export A="a b$CONDA_PREFIX"\nPATH=/a:$PATH\n',
        "etc/conda/activate.d/b.sh": "export B=$'it\\'s'\nfalse\n",
        "etc/conda/env_vars.d/c.json": '{"C": "from a file"}',
    }
    kitchen.channel.add(Package("acts", files=scripts))
    layer = kitchen.layer("acts")
    told = kitchen.run(layer, "sh", "-c", 'echo "$A-$B-$C"; echo "$PATH"')
    assert told[0] == f"a b{PREFIX}-it's-from a file"
    assert told[1].startswith(f"/a:{PREFIX}/bin:/")
    assert told[1].count(f"{PREFIX}/bin") == 1


def test_a_broken_activation_script_is_noted(kitchen: Kitchen) -> None:
    scripts = {"etc/conda/activate.d/a.sh": "export A=1\nexit 3\n"}
    kitchen.channel.add(Package("acts", files={**scripts, "bin/x": "#!/bin/sh\n"}))
    layer = kitchen.layer("acts")
    assert kitchen.run(layer, "sh", "-c", 'echo "<$A>"') == ["<>"]
    assert "activation scripts of the conda packages cannot run" in kitchen.log


def test_link_scripts_do_not_run(kitchen: Kitchen) -> None:
    trace = kitchen.folder / "ran"
    script = f"#!/bin/sh\ntouch {trace}\n"
    names = ("bin/.post-post-link.sh", "bin/.post-pre-link.sh")
    kitchen.channel.add(Package("post", files=dict.fromkeys(names, script)))
    kitchen.layer("post")
    assert not trace.exists()
    assert "post has a post-link script, which is not run" in kitchen.log


def test_a_second_environment_lies_beside_the_first(kitchen: Kitchen) -> None:
    job = kitchen.job()
    below = kitchen.below(job)
    ours = dataclasses.replace(below.inventory, ours=("conda", "layers"))
    layer = conda_layer(
        job,
        dataclasses.replace(below, inventory=ours),
        Conda(("alpha ==1.0",)),
        Shelf(kitchen.folder / "v2", "layers"),
        kitchen.folder / "packages",
    )
    assert kitchen.run(layer, "say") == ["alpha lives in /.gc-apptainer/conda2"]


def test_progress_is_told(kitchen: Kitchen, told: list[events.Event]) -> None:
    kitchen.layer("beta")
    steps = [e for e in told if isinstance(e, events.Progress)]
    assert [(e.done, e.total) for e in steps if e.unit == "packages"][-1] == (2, 2)


# Failures


def test_a_package_that_nobody_has(kitchen: Kitchen) -> None:
    error = kitchen.error("nosuch>=3")
    assert error.code == "package-not-found"
    assert "nosuch >=3" in error.message


def test_packages_that_do_not_go_together(kitchen: Kitchen) -> None:
    error = kitchen.error("beta", "gamma")
    assert error.code == "package-conflict"
    words = "\n".join(error.tail)
    assert "alpha <2" in words and "alpha >=2" in words


def test_a_package_for_a_newer_libc_than_the_image_has(kitchen: Kitchen) -> None:
    error = kitchen.error("newer")
    assert "__glibc >=9.1" in "\n".join(error.tail)


def test_a_base_with_another_libc(kitchen: Kitchen) -> None:
    job = kitchen.job()
    below = kitchen.below(job)
    musl = dataclasses.replace(below.inventory, libc="musl")
    with pytest.raises(BuildError) as caught:
        conda_layer(
            job,
            dataclasses.replace(below, inventory=musl),
            Conda(("alpha",)),
            Shelf(kitchen.folder / "v2", "layers"),
            kitchen.folder / "packages",
        )
    assert caught.value.code == "no-glibc"


def test_a_channel_that_is_not_there(kitchen: Kitchen) -> None:
    with served(kitchen.channel.folder) as (url, _):
        assert (
            kitchen.error("alpha", channels=(f"{url}/x",)).code == "channel-not-found"
        )
    error = kitchen.error("alpha", channels=(url,))
    assert error.code == "index-unreachable"
    assert "refused" in "\n".join(error.tail)


def test_without_the_network_what_was_known_is_used(kitchen: Kitchen) -> None:
    with served(kitchen.channel.folder) as (url, _):
        kitchen.layer("beta", channels=(url,))
    layer = kitchen.layer("beta", variables=(("NEW", "1"),), channels=(url,))
    assert "a channel cannot be reached" in kitchen.log
    assert kitchen.run(layer, "say") == [f"alpha lives in {PREFIX}"]


@pytest.mark.parametrize("over_http", [True, False])
def test_a_package_that_is_not_what_the_index_says(
    kitchen: Kitchen, over_http: bool
) -> None:
    path = kitchen.channel.folder / "linux-64" / ALPHA2.file_name
    path.write_bytes(path.read_bytes() + b"more")
    with served(kitchen.channel.folder) as (url, _):
        where = (url if over_http else kitchen.channel.url,)
        error = kitchen.error("alpha=2", channels=where)
    assert (error.code, error.tail) == ("hash-mismatch", error.tail)
    assert "alpha-2.0-0" in error.message


def test_a_path_that_leads_out_of_the_prefix(kitchen: Kitchen) -> None:
    deep = "d/" * 8
    evil = Package(
        "evil",
        files={f"{deep}x": "", "tmp/y": "", "share/e": ""},
        links={"l": deep.rstrip("/")},
    )
    contents, paths = evil._contents()
    for path in ("../escaped", f"l/{'../' * 7}tmp/y", "l/x"):
        evil._contents = lambda p=path: (  # type: ignore[method-assign]
            contents,
            [*paths, {**paths[-1], "_path": p, "path_type": "hardlink"}],
        )
        kitchen.channel.add(evil)
        error = kitchen.error("evil")
        assert (path, error.code) == (path, "package-refused")
        assert path.rstrip("x") in error.message


FULL = """
mount -t tmpfs -o size=1m none "$1"
exec "$2" -m globus_compute_apptainer.build.conda.child "$3" "$4"
"""


def test_a_full_disk(kitchen: Kitchen) -> None:
    big = Package("big", files={"share/big": os.urandom(3 << 20)})
    kitchen.channel.add(big)
    listed = kitchen.layer("big").lock["packages"]
    place, asked = kitchen.folder / "small", kitchen.folder / "request"
    place.mkdir()
    request = {
        "action": "install",
        "channels": [kitchen.channel.url],
        "packages": listed,
        "subdir": "linux-64",
        "prefix": f"{place}/prefix",
        "inside": PREFIX,
        "cache": str(kitchen.folder / "packages/rattler/packages"),
    }
    asked.write_text(json.dumps(request))
    answer = kitchen.folder / "answer"
    flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    names = [str(place), sys.executable, str(asked), str(answer)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = ["unshare", *flags, "/bin/sh", "-euc", FULL, "sh", *names]
    assert subprocess.run(argv, env=env).returncode == 3
    assert json.loads(answer.read_text())["error"] == "DiskFull"


def test_time_is_up(kitchen: Kitchen) -> None:
    with _silent_server() as url:
        kitchen.config["timeout"] = 8.0
        assert kitchen.error("alpha", channels=(url,)).code == "build-timeout"


def test_cancelled(kitchen: Kitchen) -> None:
    cancel = threading.Event()
    kitchen.changes["cancel"] = cancel
    with _silent_server(cancel.set) as url:
        assert kitchen.error("alpha", channels=(url,)).code == "build-cancelled"
    assert not list((kitchen.folder / "scratch").iterdir())


def _silent_server(on_request: Callable[[], None] = lambda: None) -> Any:
    """Takes connections and never answers."""

    @contextlib.contextmanager
    def listening() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            taken = []

            def take() -> None:
                while True:
                    try:
                        taken.append(server.accept()[0])
                    except OSError:
                        return
                    on_request()

            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
            server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()

    return listening()


# Locks, mirrors, certificates


def test_a_lock_installs_what_it_says(kitchen: Kitchen) -> None:
    first = kitchen.layer("beta")
    newer = dataclasses.replace(ALPHA, version="1.5", files={"share/15": ""})
    kitchen.channel.add(newer)
    locked = json.loads(json.dumps(dict(first.lock)))["packages"]
    assert kitchen.layer("beta", locked=locked) == first
    fresh = kitchen.layer("beta")
    assert [p["version"] for p in fresh.lock["packages"]] == ["1.5", "1.0"]


def test_what_a_lock_names_and_is_gone(kitchen: Kitchen) -> None:
    with served(kitchen.channel.folder) as (url, _):
        first = kitchen.layer("beta", channels=(url,))
        Shelf(kitchen.folder / "v2", "layers").remove(first.key)
        kitchen.channel.remove(ALPHA)
        kitchen.folder = kitchen.folder / "elsewhere"
        kitchen.folder.mkdir()
        locked = first.lock["packages"]
        error = kitchen.error("beta", locked=locked)
    assert error.code == "lock-unavailable"
    assert "alpha-1.0-0" in "\n".join(error.tail)


def test_a_mirror_is_used_and_not_told(kitchen: Kitchen) -> None:
    with served(kitchen.channel.folder.parent) as (url, seen):
        near = url.replace("//", "//me:s3cret@") + "/channel"
        kitchen.config["conda_mirrors"] = (("conda-forge", near),)
        layer = kitchen.layer("conda-forge::beta", channels=("conda-forge",))
        assert kitchen.run(layer, "say") == [f"alpha lives in {PREFIX}"]
        listed = kitchen.run(layer, "sh", "-c", f"cat {PREFIX}/conda-meta/*")
    assert any("/channel/linux-64/beta" in line for line in seen)
    urls = [p["url"] for p in layer.lock["packages"]]
    assert all(u.startswith("https://conda.anaconda.org/conda-forge/") for u in urls)
    told = [
        *json.dumps(dict(layer.lock), indent=1).splitlines(),
        *kitchen.log.splitlines(),
        *listed,
    ]
    assert not [line for line in told if "s3cret" in line or "localhost" in line]


def test_the_sites_proxy_is_used(kitchen: Kitchen) -> None:
    hosts = kitchen.folder / "proxied" / "http:"  # as a proxy is asked for them
    hosts.mkdir(parents=True)
    (hosts / "channel.invalid").symlink_to(kitchen.channel.folder)
    with served(hosts.parent) as (proxy, seen):
        kitchen.config["env"] = (("http_proxy", proxy), ("no_proxy", ""))
        layer = kitchen.layer("beta", channels=("http://channel.invalid",))
    assert layer.lock["channels"] == ["http://channel.invalid"]
    assert any("GET http://channel.invalid/linux-64/beta" in line for line in seen)


def test_two_builds_share_one_cache(kitchen: Kitchen) -> None:
    """At once, as in two processes: each has a child of its own."""
    kitchen.channel.add(python_package())
    job = kitchen.job()
    below = kitchen.below(job)
    made: list[Layer] = []

    def make(number: int) -> None:
        own = dataclasses.replace(job, scratch=kitchen.folder / f"scratch{number}")
        own.scratch.mkdir()
        shelf = Shelf(kitchen.folder / f"v2-{number}", "layers")
        wanted = Conda(("alpha ==1.0", "python"))
        made.append(conda_layer(own, below, wanted, shelf, kitchen.folder / "packages"))

    threads = [threading.Thread(target=make, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({layer.key for layer in made}) == 1
    assert [len(kitchen.run(one, "say")) for one in made] == [1, 1, 1]


def test_the_sites_certificates_are_trusted(kitchen: Kitchen, tmp_path: Path) -> None:
    authority, server = certificates(tmp_path)
    with served(kitchen.channel.folder, certificate=server) as (url, _):
        assert kitchen.error("alpha", channels=(url,)).code == "index-unreachable"
        kitchen.config["ca_bundle"] = authority
        assert kitchen.layer("alpha=1", channels=(url,)).lock["channels"] == [url]


def certificates(folder: Path) -> tuple[Path, Path]:
    """An authority, and a server's key and certificate for localhost."""
    steps = """
        req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca
            -keyout ca.key -out ca.crt
        req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout s.key -out s.csr
        x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2
            -extfile ext -out s.crt
    """
    (folder / "ext").write_text(
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE"
    )
    for step in steps.replace("\n            ", " ").strip().splitlines():
        argv = ["openssl", *step.split()]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    both = folder / "server.pem"
    both.write_text((folder / "s.key").read_text() + (folder / "s.crt").read_text())
    return folder / "ca.crt", both
