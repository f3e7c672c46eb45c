"""Base images from a real registry and from files, made by a real Apptainer."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer, run
from globus_compute_apptainer.build.bases.base import Bases
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.scratch import private_scratch
from globus_compute_apptainer.build.system.flat import packing
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf
from provision.oci import Layered, call

pytestmark = pytest.mark.apptainer

MakeJob = Callable[..., Job]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "v2", "bases")


@pytest.fixture
def bases(shelf: Shelf, tmp_path: Path) -> Bases:
    return Bases(shelf, tmp_path / "v2" / "tags")


@pytest.fixture
def inside(apptainer: Apptainer) -> Callable[..., list[str]]:
    def inside(sif: Path, *command: str, verb: str = "exec") -> list[str]:
        lines: list[str] = []
        argv = apptainer.exec_argv(
            sif, command, options=["--no-home", "--no-mount", "cwd,tmp"], cwd="/"
        )
        argv[1] = verb
        ended = run(argv, env=apptainer.environment(), timeout=60, on_line=lines.append)
        assert ended.ok, lines
        return [line for line in lines if not line.startswith("INFO: ")]

    return inside


def docker(registry: str, name: str) -> ImageSpec:
    return ImageSpec(f"{registry}/{name}", "docker")


def pulls(told: list[events.Event]) -> int:
    return sum(isinstance(e, events.StageStarted) and e.stage == "pull" for e in told)


def test_a_base_of_a_registry(bases, make_job, told, registry, inside):
    base = bases.get(make_job())
    assert base.digest.startswith("sha256:")
    assert base.reference == f"docker://{registry}/python:3.11-slim"
    assert base.inventory.python.minor == "3.11"
    assert base.inventory.os_id == "debian"
    assert "pip" in [package.name for package in base.inventory.python.packages]
    lock = json.loads(json.dumps(base.lock))
    assert lock["digest"] == base.digest
    assert len(lock["layers"]) == 1
    assert lock["kind"] == "registry"
    assert inside(base.sif, "python3", "-c", "print(6 * 7)") == ["42"]
    done = [e for e in told if isinstance(e, events.Progress)]
    assert done[-1].done == done[-1].total > 1_000_000
    assert not list(make_job().scratch.iterdir())


def test_it_is_pulled_once_for_many_threads(bases, make_job, told, tmp_path):
    jobs = [make_job(scratch=tmp_path / f"scratch{n}") for n in range(5)]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(bases.get, jobs))
    assert len({base.sif for base in found}) == 1
    assert pulls(told) == 1


_OTHER_PROCESS = """
import os, sys, threading, time
from pathlib import Path
from globus_compute_apptainer import events
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.bases.base import Bases
from globus_compute_apptainer.build.system.flat import packing
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf

registry, top, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
scratch.mkdir()
image = ImageSpec(f"{registry}/nopython:latest", "docker")
config = BuildConfig(http_registries=(registry,), timeout=120.0)
site = SiteAccess.from_host(os.environ, config)
seen = []
with open(scratch.with_suffix(".log"), "w") as log:
    transcript = Transcript(log, digest=image.digest, stages=[], sink=seen.append)
    job = Job(image, Apptainer.find(), config, site, scratch, scratch, transcript,
              threading.Event(), deadline=time.monotonic() + 120)
    base = Bases(Shelf(top, "bases"), top / "tags").get(job)
pulls = [e for e in seen if isinstance(e, events.StageStarted) and e.stage == "pull"]
print(len(pulls), base.digest, base.sif)
"""


def test_it_is_pulled_once_for_many_processes(registry, tmp_path):
    argv = [sys.executable, "-c", _OTHER_PROCESS, registry, str(tmp_path / "v2")]
    started = [
        subprocess.Popen([*argv, str(tmp_path / f"s{n}")], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    said = [process.communicate(timeout=120)[0].decode().split() for process in started]
    assert sorted(row[0] for row in said) == ["0", "0", "1"]
    assert len({tuple(row[1:]) for row in said}) == 1


def test_a_known_digest_outlives_its_registry(shelf, tmp_path, make_job, own, layered):
    own.push(layered.layout, "made", "mine:1")
    image = docker(own.address, "mine:1")
    config = BuildConfig(http_registries=(own.address,), timeout=120.0)
    clock = [time.time()]
    bases = Bases(shelf, tmp_path / "v2" / "tags", now=lambda: clock[0])
    first = bases.get(make_job(image, config=config))
    own.stop()
    assert bases.get(make_job(image, config=config)).lock == first.lock  # not asked
    clock[0] += 3 * 86400
    log = make_job().log
    assert bases.get(make_job(image, config=config)) == first
    assert "cannot be reached" in log.read_text()
    with pytest.raises(BuildError) as caught:
        bases.get(make_job(image, config=config, fresh=True))
    assert (caught.value.code, caught.value.stage) == (
        "registry-unreachable",
        "resolve",
    )
    by_digest = docker(own.address, f"mine@{first.digest}")
    assert bases.get(make_job(by_digest, config=config)).sif == first.sif


def test_a_tag_that_moved(bases, make_job, own, layered, tmp_path, inside):
    own.push(layered.layout, "made", "mine:1")
    image = docker(own.address, "mine:1")
    config = BuildConfig(http_registries=(own.address,), timeout=120.0)
    first = bases.get(make_job(image, config=config))
    layered.add(moved="yes\n")
    own.push(layered.layout, "made", "mine:1")
    assert bases.get(make_job(image, config=config)).digest == first.digest
    moved = bases.get(make_job(image, config=config, fresh=True))
    assert moved.digest != first.digest
    assert inside(moved.sif, "cat", "/moved") == ["yes"]
    assert bases.get(make_job(image, config=config)).digest == moved.digest


_LOOK = r"""
cd /
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./.singularity.d \
    -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./etc/passwd \
    -o -path ./etc/group -o -path ./etc/localtime \) -prune \
    -o -type d -printf '%p %y %m\n' -o -printf '%p %y %m %s %l\n' 2>/dev/null
cat .singularity.d/env/10*
echo "$SAID"
true
"""


def test_an_image_is_what_apptainer_makes_of_it(
    bases, make_job, own, layered, tmp_path, inside, apptainer
):
    """Layers with whiteouts, environment, entry point and labels."""
    layer = layered.add
    layer(a__one="1", a__two="2", b__x="x", b__y__z="z", c="c", d__e="e", m="->a")
    layer(**{"a__.wh.one": "", "b__.wh..wh..opq": "", "b__new": "n", ".wh.c": ""})
    layer(a__one__deep="again", d="now a file", c__back="1", m__x="x")
    layer(**{"opt__long" + "g" * 150: "x", ".wh.d": "", "empty": None})
    layered.configure("--config.env", 'SAID=it\'s $HOME "quoted"')
    layered.configure("--config.label", "org.example.what=a label: with, all")
    entry = ["/bin/echo", "entry $SAID"]
    layered.configure(
        *(word for part in entry for word in ("--config.entrypoint", part))
    )
    layered.configure("--config.cmd", "by default", "--config.workingdir", "/srv")
    own.push(layered.layout, "made", "mine:1")
    image = docker(own.address, "mine:1")
    config = BuildConfig(http_registries=(own.address,), timeout=120.0)
    ours = bases.get(make_job(image, config=config))
    assert "has to unpack" not in make_job().log.read_text()
    theirs = tmp_path / "theirs.sif"
    env = {**apptainer.environment(), "APPTAINER_NOHTTPS": "1"}
    env |= {"APPTAINER_CACHEDIR": str(tmp_path / "cache")}
    source = f"docker://{own.address}/mine:1"
    call(apptainer.path, "pull", str(theirs), source, env=env)

    both = (ours.sif, theirs)
    trees = [inside(sif, "sh", "-c", _LOOK) for sif in both]
    assert sorted(trees[0]) == sorted(trees[1])
    assert any(line.startswith("./a/one/deep f") for line in trees[0])
    flags = [*apptainer.exec_flags, "--cleanenv", "--no-home"]
    for more in ([], ["other words"]):
        ran = [
            call(apptainer.path, "run", *flags, str(s), *more, env=env) for s in both
        ]
        assert ran[0] == ran[1] != ""
    ask = ["inspect", "--json", "--labels"]
    told = [json.loads(call(apptainer.path, *ask, str(sif), env=env)) for sif in both]
    labels = [one["data"]["attributes"]["labels"] for one in told]
    assert labels[0]["org.example.what"] == "a label: with, all"
    assert labels[0].keys() == labels[1].keys()
    exact = f"{own.address}/mine@{ours.digest}"
    assert labels[0]["org.label-schema.usage.singularity.deffile.from"] == exact
    definition = call(apptainer.path, "inspect", "--deffile", str(ours.sif), env=env)
    assert definition.split() == ["bootstrap:", "docker", "from:", exact]


def test_links_through_which_a_layer_writes(
    bases, make_job, own, layered, inside, tmp_path
):
    """Too odd for one pass: Apptainer unpacks it, and the answer is the same."""
    layered.add(real__x="x", link="->real")
    archive = tmp_path / "odd.tar"
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("link/y")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"y"))
    layered.add_archive(archive)
    own.push(layered.layout, "made", "odd:1")
    config = BuildConfig(http_registries=(own.address,), timeout=120.0)
    base = bases.get(make_job(docker(own.address, "odd:1"), config=config))
    assert "Apptainer itself has to unpack" in make_job().log.read_text()
    assert inside(base.sif, "cat", "/real/x", "/real/y") == ["xy"]


def test_a_base_without_python(bases, make_job, registry):
    seen = bases.get(make_job(docker(registry, "nopython:latest"))).inventory
    assert seen.python is None
    assert (seen.os_id, seen.libc, seen.machine) == ("debian", "glibc", "x86_64")
    assert seen.has_bash
    assert seen.path.startswith("/usr/local/sbin:")


def test_local_files(bases, make_job, nopython_sif, layered, tmp_path, inside, shelf):
    """Each is known by its content: a changed file is another base, and the old one
    stays what it was."""
    local = tmp_path / "my.sif"
    shutil.copyfile(nopython_sif, local)
    first = bases.get(make_job(ImageSpec(str(local), "localimage")))
    assert first.lock["kind"] == "file"
    archive = tmp_path / "my.tar"
    tool = ["skopeo", "--insecure-policy", "copy", f"oci:{layered.layout}:made"]
    call(*tool, f"docker-archive:{archive}:my:1")
    second = bases.get(make_job(ImageSpec(str(archive), "docker-archive")))
    archive2 = tmp_path / "my-oci.tar"
    call(*tool, f"oci-archive:{archive2}:made")
    third = bases.get(make_job(ImageSpec(f"{archive2}:made", "oci-archive")))
    layout = ImageSpec(f"{layered.layout}:made", "oci")
    fourth = bases.get(make_job(layout))
    for base in (first, second, third, fourth):
        assert inside(base.sif, "cat", "/etc/debian_version")
    assert len({base.digest for base in (first, second, third, fourth)}) == 4
    layered.add(new="1")
    fifth = bases.get(make_job(layout))
    assert fifth.digest != fourth.digest
    assert inside(fifth.sif, "cat", "/new") == ["1"]
    local.write_bytes(b"")
    with pytest.raises(BuildError) as caught:
        bases.get(make_job(ImageSpec(str(local), "localimage")))
    assert caught.value.code == "base-not-found"
    assert first.sif.stat().st_size == nopython_sif.stat().st_size


def test_a_sif_in_a_registry(bases, make_job, own, nopython_sif, apptainer, inside):
    target = f"oras://{own.address}/sif:1"
    env = {**apptainer.environment(), "APPTAINER_NOHTTPS": "1"}
    call(apptainer.path, "push", str(nopython_sif), target, env=env)
    config = BuildConfig(http_registries=(own.address,), timeout=120.0)
    image = ImageSpec(f"{own.address}/sif:1", "oras")
    base = bases.get(make_job(image, config=config))
    assert base.sif.read_bytes() == nopython_sif.read_bytes()
    assert bases.get(make_job(image, config=config)) == base


def test_a_base_that_is_a_virtual_environment(bases, make_job, tmp_path, apptainer):
    """What tasks get there is the environment, over a Python of its own."""
    base = bases.get(make_job())
    definition = tmp_path / "venv.def"
    definition.write_text(
        f"Bootstrap: localimage\nFrom: {base.sif}\n%post\n"
        "python3 -m venv --without-pip /opt/venv\n"
        "%environment\nexport PATH=/opt/venv/bin:$PATH\n"
    )
    made = tmp_path / "venv.sif"
    argv = apptainer.build_argv(definition, made, options=packing(apptainer))
    call(*argv, env=apptainer.environment())
    found = bases.get(make_job(ImageSpec(str(made), "localimage"))).inventory.python
    assert found.executable == "/opt/venv/bin/python3"
    assert (found.prefix, found.base_prefix) == ("/opt/venv", "/usr")
    assert found.base_executable.startswith("/usr/bin/python3")
    assert found.site_packages == ("/opt/venv/lib/python3.11/site-packages",)
    assert found.packages == ()


def test_nothing_is_left_where_a_pull_was_ended(bases, shelf, make_job, tmp_path):
    job = make_job()
    job.transcript._sink = lambda event: (
        job.cancel.set() if isinstance(event, events.Progress) else None
    )
    with pytest.raises(BuildError) as caught:
        bases.get(job)
    assert caught.value.code == "build-cancelled"
    assert list(job.scratch.iterdir()) == []
    assert not [p for p in (tmp_path / "v2").rglob("*") if p.name == "base.sif"]
    assert bases.get(make_job()).inventory.python


def test_a_damaged_base_is_made_again(bases, make_job):
    base = bases.get(make_job())
    size = base.sif.stat().st_size
    base.sif.chmod(0o600)
    with base.sif.open("r+b") as file:
        file.truncate(size // 2)
    assert bases.get(make_job()).sif.stat().st_size == size


def test_a_release_of_debian(bases, make_job, told, inside):
    """Made once, and then kept. Subordinate ids must reach the directory."""
    image = ImageSpec("bookworm", "debootstrap")
    with private_scratch(BuildConfig()) as scratch:
        base = bases.get(make_job(image, scratch=scratch))
        assert list(scratch.iterdir()) == []
        assert scratch.stat().st_mode & 0o777 == 0o700
        with pytest.raises(BuildError) as caught:
            missing = ImageSpec("nosuchrelease", "debootstrap")
            bases.get(make_job(missing, scratch=scratch))
        assert caught.value.code == "base-not-found"
    assert base.lock["kind"] == "bootstrap"
    assert inside(base.sif, "cat", "/etc/debian_version")[0].startswith("12.")
    assert inside(base.sif, "stat", "-c", "%a", "/tmp", "/") == ["1777", "755"]
    assert base.inventory.os_id == "debian"
    assert base.inventory.python is None
    told.clear()
    assert bases.get(make_job(image)) == base
    assert pulls(told) == 0


def test_a_base_without_a_shell(bases, make_job, own, tmp_path):
    layout = tmp_path / "empty"
    call("umoci", "init", "--layout", str(layout))
    call("umoci", "new", "--image", f"{layout}:made")
    made = Layered(layout, tmp_path)
    made.add(only="a file")
    own.push(layout, "made", "empty:1")
    config = BuildConfig(http_registries=(own.address,), timeout=60.0)
    with pytest.raises(BuildError, match="has no /bin/sh"):
        bases.get(make_job(docker(own.address, "empty:1"), config=config))
