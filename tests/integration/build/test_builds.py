"""Builds that work: what is in the image, and what is not."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.spec.model import ImageSpec
from provision.wheels import make_wheel

pytestmark = pytest.mark.apptainer


@pytest.mark.parametrize("strategy", ["layered", "flat"])
def test_all_stages(workshop, strategy):
    built = workshop.build(
        config=workshop.config(strategy=strategy),
        python="3.11",
        pip=("humanize==4.9.0",),
        apt=("tree",),
        post=("pwd >/where", "humanize --help || true", "id -u >/who"),
    )
    assert built.probe.python == "/.gc-apptainer/env/bin/python3"
    assert built.probe.python_version.startswith("3.11.")
    assert "humanize==4.9.0" in built.probe.packages
    assert built.probe.os.startswith("Debian GNU/Linux 12")
    assert built.probe.libc.startswith("glibc 2.36")
    assert built.probe.has_bash
    assert bool(built.reason) == (strategy == "flat")
    stages = {"resolve", "pull", "apt", "pip", "post", "pack", "probe"}
    assert set(built.stage_seconds) == stages
    entered = [e.stage for e in workshop.told if isinstance(e, events.StageStarted)]
    assert set(entered) == stages
    log = workshop.log.read_text()
    assert "$ apt-get" in log
    assert log.endswith("=== done\n")

    program = "import humanize; print(humanize.naturalsize(10**6))"
    assert workshop.inside("python3", "-c", program)[-1] == "1.0 MB"
    assert workshop.inside("tree", "--version")
    assert workshop.inside("cat", "/where", "/who") == ["/", "0"]
    for mark in built.markers:
        assert workshop.inside("ls", mark) == [mark]
    assert built.markers
    # Nothing of the build is left inside: no recipe, no caches, no package lists.
    folders = ["/.gc-apptainer-build", "/var/lib/apt/lists", "/var/cache/apt/archives"]
    find = f"find {' '.join(folders)} -type f ! -name lock 2>/dev/null || true"
    assert workshop.inside("sh", "-c", find) == []


def test_the_lock_says_what_was_installed(workshop):
    built = workshop.build(pip=("humanize==4.9.0",), apt=("tree",))
    (package,) = built.lock["pip"]["packages"]
    assert (package["name"], package["version"]) == ("humanize", "4.9.0")
    assert package["hashes"]
    assert "tree" in {package["name"] for package in built.lock["apt"]["packages"]}
    assert built.lock["base"]["digest"] == built.base_digest
    assert built.base_digest.startswith("sha256:")


def test_what_two_specs_have_in_common_is_made_once(workshop):
    first = workshop.build(apt=("tree",), pip=("humanize",))
    second = workshop.build(apt=("tree",), pip=("tqdm",))
    keys = [{layer.kind: layer.key for layer in b.layers} for b in (first, second)]
    assert keys[0]["apt"] == keys[1]["apt"]
    assert keys[0]["pip"] != keys[1]["pip"]
    assert "$ apt-get" not in workshop.log.read_text()
    assert "pull" not in second.stage_seconds


def test_a_spec_that_overlays_cannot_express_becomes_flat(workshop):
    built = workshop.build(
        pip=("humanize",),
        post=("rm -r /usr/share/doc", "mkdir /usr/share/doc", "touch /usr/share/doc/x"),
    )
    assert "/usr/share/doc" in built.reason
    assert workshop.inside("ls", "/usr/share/doc") == ["x"]
    assert workshop.inside("python3", "-c", "import humanize; print(1)") == ["1"]


def test_a_host_that_shows_no_overlays_gets_flat_images(workshop):
    """Found out by the markers, as Apptainer itself does not say a word."""
    blind = dataclasses.replace(
        workshop.apptainer, exec_flags=(*workshop.apptainer.exec_flags, "--underlay")
    )
    built = dataclasses.replace(workshop, apptainer=blind).build(pip=("humanize",))
    assert built.reason == "this host does not show the layers of an image"
    assert "humanize" in " ".join(built.probe.packages)


def test_post_is_run_once_where_that_is_found_out_late(workshop):
    """In the layer: then it is not run again over what it has made."""
    blind = dataclasses.replace(
        workshop.apptainer, exec_flags=(*workshop.apptainer.exec_flags, "--underlay")
    )
    dataclasses.replace(workshop, apptainer=blind).build(post=("mkdir /made",))
    assert workshop.inside("ls", "-d", "/made") == ["/made"]


def test_the_lock_of_a_flat_image_has_post_too(workshop):
    flat = workshop.config(strategy="flat")
    built = workshop.build(config=flat, post=("touch /made",))
    assert built.lock["post"] == {
        "post": ["touch /made"],
        "post_build": False,
        "packages": [],
    }


def test_what_packages_run_at_every_start_sees_nothing_of_the_host(
    workshop, tmp_path, request
):
    """Nor do other builds, which work in such places, see anything of it."""
    links, seen = tmp_path / "links", Path("/dev/shm", f"gc-{os.getpid()}")
    request.addfinalizer(lambda: seen.unlink(missing_ok=True))
    code = f"import os; os.path.exists('/dev/shm') and open({str(seen)!r}, 'w').close()"
    made = make_wheel(links, "nosy", "1.0", files={"nosy.pth": f"{code}\n"})
    workshop.environ["UV_FIND_LINKS"] = str(made.parent)
    built = workshop.build(pip=("nosy",))
    assert "nosy==1.0" in built.probe.packages
    assert not seen.exists()


def test_an_image_of_ours_may_be_a_base(workshop):
    workshop.build(pip=("humanize",))
    base = workshop.folder / "base.sif"
    shutil.move(workshop.image, base)
    built = workshop.build_spec(ImageSpec(str(base), "localimage", pip=("tqdm",)))
    assert built.probe.python == "/.gc-apptainer/env2/bin/python3"
    names = {package.partition("==")[0] for package in built.probe.packages}
    assert {"humanize", "tqdm"} <= names


def test_a_base_without_anything_asked(workshop):
    built = workshop.build()
    assert set(built.stage_seconds) == {"resolve", "pull", "pack", "probe"}
    assert built.layers == ()


def test_a_base_without_python_may_stay_so(workshop):
    built = workshop.build("nopython:latest", post=("touch /x",))
    assert (built.probe.python, built.probe.packages) == (None, ())
    assert built.probe.os
    assert built.probe.libc.startswith("glibc")


def test_python_may_come_from_apt(workshop):
    built = workshop.build("nopython:latest", apt=("python3-minimal",))
    assert built.probe.python == "/usr/bin/python3"


def test_files_are_not_writable_for_the_group(workshop):
    workshop.build(post=("touch /made", "umask >/umask"))
    assert workshop.inside("stat", "-c", "%a", "/made") == ["644"]


def test_spec_text_never_meets_a_shell(workshop):
    """Names that a careless script would expand, split or run."""
    error = workshop.error(apt=("$(touch${IFS}/pwned)", "`id`", "a;b", "*"))
    assert (error.code, error.stage) == ("package-not-found", "apt")
    assert "$(touch${IFS}/pwned)" in error.command


def test_a_virtual_environment_as_base(workshop):
    """What is in it is there still, and the new environment sees it."""
    workshop.build(
        config=workshop.config(strategy="flat"),
        apt=("python3-venv",),
        post=(
            "python3 -m venv /opt/venv",
            "echo 'export PATH=/opt/venv/bin:$PATH' >/.singularity.d/env/90-venv.sh",
            "touch /opt/venv/lib/python3.11/site-packages/of_the_base.py",
        ),
    )
    base = workshop.folder / "base.sif"
    shutil.move(workshop.image, base)
    built = workshop.build_spec(ImageSpec(str(base), "localimage", pip=("humanize",)))
    assert any(package.startswith("humanize==") for package in built.probe.packages)
    program = "import humanize, of_the_base; print(of_the_base.__file__)"
    assert workshop.inside("python3", "-c", program)[-1].startswith("/opt/venv/")


def test_an_image_file_as_base(workshop, python_sif: Path):
    built = workshop.build_spec(ImageSpec(str(python_sif), "localimage", "3.11"))
    assert built.base == f"localimage://{python_sif}"


def test_the_log_can_be_followed(workshop):
    """Each line is in the file when its event is told."""
    missing: list[str] = []

    def sink(event: events.Event) -> None:
        line = event.line if isinstance(event, events.OutputLine) else ""
        if line not in workshop.log.read_text():
            missing.append(line)

    workshop.sink = sink
    workshop.build(post=("echo one", "echo two"))
    assert missing == []
