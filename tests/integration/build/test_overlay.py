"""Debian packages and post as layers: what is in them, and when there can be none."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.layer import marker
from globus_compute_apptainer.build.layers import LAYER_FILE
from globus_compute_apptainer.build.system.flat import build_flat
from globus_compute_apptainer.build.system.lists import Lists
from globus_compute_apptainer.build.system.surface import OverlayUnsuitableError
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.store.shelf import Shelf
from integration.build.overlays import Stack, listed, stacked

pytestmark = pytest.mark.apptainer


@pytest.fixture
def stack(make_job, python_sif: Path, tmp_path: Path) -> Iterator[Stack]:
    with stacked(make_job, python_sif, tmp_path) as stack:
        yield stack


def test_packages_work_and_are_named(stack: Stack):
    layer = stack.apt("git")
    assert stack.inside("git --version")[0].startswith("git version 2.")
    names = {package["name"]: package for package in layer.lock["packages"]}
    assert layer.lock["requested"] == ["git"]
    assert {"git", "git-man", "libcurl3-gnutls"} <= set(names)
    assert set(names["git"]) == {"name", "version", "arch"}
    assert names["git"]["version"] == stack.inside("dpkg-query -Wf '${Version}' git")[0]
    assert stack.clean()


def test_nothing_of_the_installation_itself_is_in_the_layer(stack: Stack):
    paths = listed(stack.apt("tree"))
    assert "/usr/bin/tree" in paths
    assert not [path for path in paths if "/.wh." in path]
    for place in ("/var/lib/apt/lists/", "/var/cache/apt/", "/var/log/", "/tmp/"):
        assert not [path for path in paths if path.startswith(place)]
    assert "/.gc-apptainer-build" not in paths


def test_a_second_build_takes_the_layer_that_is_there(stack: Stack, tmp_path):
    first = stack.apt("tree")
    other = Stack(stack.make_job, stack.below.sif, tmp_path)
    again = other.apt("tree")
    assert again == first
    assert stack.job.log.read_text().count("apt-get") == 2  # update, install
    assert again.file.parent == stack.shelf.find(first.key)


def test_a_fresh_build_makes_it_anew(stack: Stack, tmp_path):
    stack.post("date +%s%N >/when")
    before = stack.inside("cat /when")
    other = Stack(stack.make_job, stack.below.sif, tmp_path)
    other.job = stack.make_job(fresh=True)
    other.post("date +%s%N >/when")
    assert other.inside("cat /when") != before


def test_post_sees_the_layers_below_and_comes_after_them(stack: Stack):
    stack.apt("tree")
    layer = stack.post("tree --version >/said", "rm /usr/bin/tree")
    assert stack.inside("cat /said; ls /usr/bin/tree || true")[0].startswith("tree v2")
    assert stack.inside("test -e /usr/bin/tree && echo there || echo gone") == ["gone"]
    assert layer.lock["packages"] == []
    for below in stack.below.layers:
        assert stack.inside(f"ls {below.marker}") == [below.marker]
    assert layer.marker == marker(layer.key)


def test_a_layer_sees_the_one_below_it_over_those_further_down(stack: Stack):
    stack.post("echo 1 >/x")
    stack.post("echo 2 >/x")
    stack.post("cp /x /seen")
    assert stack.inside("cat /seen /x") == ["2", "2"]


def test_packages_that_post_installs_are_named(stack: Stack):
    layer = stack.post("apt-get update", "apt-get install -y tree")
    assert [package["name"] for package in layer.lock["packages"]] == ["tree"]


def test_owners_and_modes_are_kept(stack: Stack):
    layer = stack.post(
        "touch /a /b; chown 33:44 /a; chmod 4755 /a; chmod 2640 /b",
        "mkdir -p /closed/inner; touch /closed/inner/file",
        "chown -R 42:42 /closed; chmod 700 /closed /closed/inner",
    )
    paths = listed(layer)
    assert paths["/a"] == ("-rwsr-xr-x", "33/44")
    assert paths["/b"] == ("-rw-r-S---", "0/0")
    assert paths["/closed/inner/file"] == ("-rw-r--r--", "42/42")
    assert paths["/closed"] == ("drwx------", "42/42")
    assert stack.clean()


def test_what_is_removed_is_gone_in_every_kind_of_container(stack: Stack):
    stack.post(
        "rm /etc/debian_version; rm -r /usr/share/keyrings",
        "mv /etc/apt /etc/apt2; rm -r /etc/dpkg; touch /etc/dpkg",
    )
    script = (
        "ls -d /etc/debian_version /usr/share/keyrings /etc/apt /etc/apt2 /etc/dpkg"
    )
    script += " 2>/dev/null || true; ls -A /etc/apt2 | wc -l"
    image, seen = stack.image(), []
    for options in ((), ("--writable-tmpfs",), ("--fakeroot",)):
        seen.append(stack.inside(script, image, options))
    assert seen[0][:2] == ["/etc/apt2", "/etc/dpkg"]
    assert int(seen[0][2]) > 3
    assert seen == [seen[0]] * 3


def test_a_directory_made_anew_is_no_layer_but_flat(stack: Stack, tmp_path: Path):
    post = ("rm -r /usr/share/keyrings", "mkdir /usr/share/keyrings")
    with pytest.raises(OverlayUnsuitableError, match="/usr/share/keyrings was removed"):
        stack.post(*post)
    assert stack.clean()
    image = tmp_path / "flat.sif"
    build_flat(stack.job, stack.below.sif, stack.below.layers, image, post=post)
    assert stack.inside("ls -A /usr/share/keyrings", image) == []
    assert stack.clean()


def test_new_directories_are_a_layer_even_where_one_was_empty(stack: Stack):
    stack.post(
        "mkdir -p /new/inner; touch /new/inner/x; rmdir /srv; mkdir /srv",
        "cp -a /usr/share/keyrings /k; rm -r /usr/share/keyrings",
        "mv /k /usr/share/keyrings",
    )
    assert stack.inside("ls -A /new /new/inner; ls /usr/share/keyrings | head -1") == [
        "/new:",
        "inner",
        "",
        "/new/inner:",
        "x",
        "debian-archive-bookworm-automatic.gpg",
    ]


def test_the_builds_environment_is_set_byte_for_byte(stack: Stack):
    stack.with_environment(GC_A="it's $(id) `id`\n\ttwo", GC_B="")
    stack.post('printf "%s|%s|" "$GC_A" "${GC_B-unset}" >/said')
    assert stack.inside("cat /said") == ["it's $(id) `id`", "\ttwo||"]


def test_the_payloads_own_script_comes_before_post(stack: Stack):
    stack.payload(
        postBuild="#!/bin/bash -e\npwd >here\nwhoami >>here\ncat data >>here\n",
        data="x\n",
    )
    stack.post("cat /payload/here >/said; pwd >>/said", post_build=True)
    assert stack.inside("cat /said") == ["/payload", "root", "x", "/"]


def test_the_script_in_binder_is_the_one(stack: Stack):
    stack.payload(
        postBuild="#!/bin/sh\nfalse\n", binder__postBuild="#!/bin/sh\npwd >/said\n"
    )
    stack.post(post_build=True)
    assert stack.inside("cat /said") == ["/payload"]


def test_a_script_that_fails_is_told(stack: Stack):
    stack.payload(postBuild="#!/bin/sh\necho no luck\nexit 3\n")
    with pytest.raises(BuildError, match="postBuild ended with status 3") as caught:
        stack.post("touch /x", post_build=True)
    assert caught.value.stage == "post"
    assert caught.value.tail[-1] == "no luck"
    assert stack.clean()


def test_a_post_that_fails_is_told(stack: Stack):
    with pytest.raises(BuildError, match="status 2; the last command was `ls /no`"):
        stack.post("echo before", "ls /no", "echo after")
    assert stack.clean()


@pytest.mark.parametrize("package", ["no-such-debian-package", "tree=0.1"])
def test_a_package_that_does_not_exist(stack: Stack, package: str):
    with pytest.raises(BuildError) as caught:
        stack.apt(package)
    assert (caught.value.code, caught.value.stage) == ("package-not-found", "apt")
    assert caught.value.command.startswith("apt-get ")
    assert caught.value.command.endswith(package)
    assert stack.clean()


def test_a_mirror_that_is_down(stack: Stack):
    stack.with_environment(
        http_proxy="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1"
    )
    with pytest.raises(BuildError) as caught:
        stack.apt("tree")
    assert (caught.value.code, caught.value.stage) == ("index-unreachable", "apt")


def test_packages_of_the_base_that_are_not_in_order(stack: Stack):
    """A package that is half installed, as a broken base may have it."""
    stack.post(
        "cd /var/lib/dpkg",
        "sed -i '/^Package: gzip$/,/^$/s/ok installed/ok half-configured/' status",
        "printf '#!/bin/sh\\nexit 1\\n' >info/gzip.postinst",
        "chmod 755 info/gzip.postinst",
    )
    with pytest.raises(BuildError) as caught:
        stack.apt("tree")
    assert (caught.value.code, caught.value.stage) == ("build-failed", "apt")
    assert "does not install into this base image" in caught.value.message


def test_a_base_without_apt(stack: Stack):
    stack.post("rm /usr/bin/apt-get")
    with pytest.raises(BuildError, match="no apt-get") as caught:
        stack.apt("tree")
    assert caught.value.code == "no-apt"


def test_the_host_is_not_seen(stack: Stack):
    """Other builds of this user may work in its memory or its /tmp."""
    stack.post(
        "ls -A /tmp /var/tmp /dev/shm >/said; touch /tmp/x /var/tmp/y; "
        "ls -A /.gc-apptainer-build >>/said"
    )
    said = stack.inside("cat /said")
    assert said[:8] == ["/dev/shm:", "", "/tmp:", "", "/var/tmp:", *said[5:8]]
    assert "work" in said


@pytest.fixture
def mark() -> str:
    """A number of seconds that no other process sleeps."""
    return f"{10000 + secrets.randbelow(80000)}.{secrets.randbelow(10**9):09}"


def running(mark: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_text(errors="replace"):
                return True
        except OSError:
            continue
    return False


def sleepers(mark: str) -> tuple[str, ...]:
    return (
        f"sleep {mark} &",
        f"setsid sh -c 'trap : TERM; while sleep {mark}; do :; done' &",
        "mkdir -p /kept/inner; chown -R 42:42 /kept; chmod 700 /kept",
        "echo sleeping",
    )


def gone(mark: str) -> bool:
    deadline = time.monotonic() + 30
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(mark)


def test_what_runs_on_ends_with_the_layer(stack: Stack, mark: str):
    stack.post(*sleepers(mark))
    assert gone(mark)
    assert stack.clean()


def test_a_post_without_end_is_ended(stack: Stack, mark: str):
    stack.job = stack.make_job(deadline=time.monotonic() + 5)
    with pytest.raises(BuildError) as caught:
        stack.post(*sleepers(mark), "cat /dev/zero >/dev/null")
    assert (caught.value.code, caught.value.stage) == ("build-timeout", "post")
    assert "sleeping" in caught.value.tail
    assert gone(mark)
    assert stack.clean()


def test_a_build_that_is_cancelled_leaves_nothing(stack: Stack, told, mark):
    cancel = threading.Event()

    class Told(list):
        def append(self, event: events.Event) -> None:
            if isinstance(event, events.OutputLine) and event.line == "sleeping":
                cancel.set()

    stack.job = stack.make_job(cancel=cancel)
    stack.job.transcript._sink = Told().append
    with pytest.raises(BuildError) as caught:
        stack.post(*sleepers(mark), f"sleep {mark}")
    assert caught.value.code == "build-cancelled"
    assert gone(mark)
    assert stack.clean()


QUOTA = Path(__file__).parents[2] / "provision" / "quota"
FILL = """\
import sys, threading, io, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec
from integration.build.overlays import Stack
place = Path(sys.argv[2])
transcript = Transcript(io.StringIO(), digest="", stages=["post"])
job = Job(ImageSpec("x", "docker"), Apptainer.find(), BuildConfig(), SiteAccess(),
          place, place / "log", transcript, threading.Event(),
          deadline=time.monotonic() + 60)
stack = Stack(lambda: job, Path(sys.argv[1]), place.parent)
try:
    stack.post("head -c 20000000 /dev/zero >/zero")
except BuildError as error:
    print(error.code, error.stage, list(place.iterdir()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")
@pytest.mark.parametrize("how", ["full_disk", "quota"])
def test_no_room_for_what_a_program_writes_is_told(
    stack: Stack, tmp_path: Path, how: str
):
    small = 'mount -t tmpfs -o size=8m none "$1"; shift; exec "$@"'
    mount = {
        "full_disk": ["unshare", "-m", "/bin/sh", "-euc", small, "sh"],
        "quota": [str(QUOTA), str(8 << 20)],
    }
    if how == "quota" and "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("no file system here has quotas")
    place = tmp_path / "small"
    place.mkdir()
    fill = [sys.executable, "-c", FILL, str(stack.below.sif), str(place), *sys.path]
    ran = subprocess.run(
        [*mount[how], str(place), *fill], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "disk-full post []\n", ran.stderr


def test_a_host_without_overlays_gets_flat_images(
    stack: Stack, tmp_path: Path, configured
):
    stack.job = stack.make_job(apptainer=configured(enable_overlay="no"))
    with pytest.raises(OverlayUnsuitableError, match="enable overlay"):
        stack.post("touch /x")
    assert stack.clean()
    image = tmp_path / "flat.sif"
    lock = build_flat(stack.job, stack.below.sif, (), image, apt=("tree",))
    assert [package["name"] for package in lock["packages"]] == ["tree"]
    assert stack.inside("tree --version", image)[0].startswith("tree v2")


def test_layers_below_that_do_not_show_are_noticed(stack: Stack, tmp_path: Path):
    """As where an administrator's settings drop overlays without a word."""
    layer = stack.post("touch /x")
    ghost = replace(layer, key="sha256:" + "a" * 64)
    stack.below = replace(stack.below, layers=(ghost,))
    with pytest.raises(OverlayUnsuitableError, match="layers are not shown here"):
        stack.post("touch /y")


def test_the_layer_is_whole_on_disk(stack: Stack):
    layer = stack.post("touch /x")
    assert layer.file.name == LAYER_FILE
    assert sorted(path.name for path in layer.file.parent.iterdir()) == [
        "layer.json",
        "layer.sha256",
        LAYER_FILE,
    ]


def test_a_second_layer_on_a_base_asks_only_for_what_is_new(stack: Stack, tmp_path):
    stack.apt("tree")
    kept = list((stack.cache / "apt").iterdir())
    assert len(kept) == 1
    told = stack.job.log.read_text()
    assert re.search(r"Get:\d+ .* Packages ", told)
    other = Stack(stack.make_job, stack.below.sif, tmp_path)
    other.shelf = Shelf(tmp_path / "v3", "layers")
    layer = other.apt("hello")
    assert not re.search(r"Packages ", other.job.log.read_text().removeprefix(told))
    assert [package["name"] for package in layer.lock["packages"]] == ["hello"]
    assert list((stack.cache / "apt").iterdir()) == kept
    assert stack.clean()


def test_lists_that_apt_cannot_use_are_had_anew(stack: Stack, tmp_path: Path):
    stack.apt("tree")
    (file,) = (stack.cache / "apt").iterdir()
    broken = tmp_path / "broken"
    Lists(file).lay(broken)
    for path in (broken / "lists").iterdir():
        path.write_bytes(b"Package: x\n\nnonsense")
    file.unlink()
    Lists(file).keep(broken, {})
    other = Stack(stack.make_job, stack.below.sif, tmp_path)
    other.shelf = Shelf(tmp_path / "v3", "layers")
    other.apt("hello")
    assert other.inside("hello")[0] == "Hello, world!"
