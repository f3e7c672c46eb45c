"""Builds that work: what is in the image, and what is not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build import flat
from globus_compute_apptainer.spec.model import ImageSpec

pytestmark = pytest.mark.apptainer


def test_all_stages(workshop):
    built = workshop.build(
        python="3.11",
        pip=("humanize==4.9.0",),
        apt=("tree",),
        post=("pwd >/where", 'echo "$0" "it\'s" $HOME >/said', "id -u >/who"),
    )
    assert built.probe.python == "/usr/bin/python3"
    assert built.probe.python_version.startswith("3.11.")
    assert "humanize==4.9.0" in built.probe.packages
    assert built.probe.os.startswith("Debian GNU/Linux 12")
    assert built.probe.libc.startswith("glibc 2.36")
    assert built.probe.has_bash
    stages = ["pull", "apt", "pip", "post", "pack", "probe"]
    assert list(built.stage_seconds) == stages
    entered = [e.stage for e in workshop.told if isinstance(e, events.StageStarted)]
    assert entered == stages
    log = workshop.log.read_text()
    assert "$ apt-get" in log
    assert log.endswith("=== done\n")

    program = "import humanize; print(humanize.naturalsize(10**6), humanize.__cached__)"
    size, unit, bytecode = workshop.inside("python3", "-c", program)[-1].split()
    assert (size, unit) == ("1.0", "MB")
    assert workshop.inside("ls", bytecode) == [bytecode]
    assert workshop.inside("tree", "--version")
    assert workshop.inside("cat", "/where", "/said", "/who") == [
        "/",
        "/.gc-apptainer/post.sh it's /root",
        "0",
    ]
    # Nothing of the build is left inside: no recipe, no caches, no package lists.
    folders = ["/.gc-apptainer", "/var/lib/apt/lists", "/var/cache/apt/archives"]
    find = f"find {' '.join(folders)} -type f ! -name lock 2>/dev/null || true"
    left = workshop.inside("sh", "-c", find)
    assert left == []


def test_a_base_without_anything_asked(workshop):
    built = workshop.build()
    assert list(built.stage_seconds) == ["pull", "pack", "probe"]


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
    """Its python3 is what PATH finds, so its packages are what is extended."""
    workshop.build(
        apt=("python3-venv",),
        post=(
            "python3 -m venv /opt/venv",
            "echo 'export PATH=/opt/venv/bin:$PATH' >>$APPTAINER_ENVIRONMENT",
        ),
    )
    base = workshop.folder / "base.sif"
    shutil.move(workshop.folder / "image.sif", base)
    built = workshop.build_spec(ImageSpec(str(base), "localimage", pip=("humanize",)))
    assert built.probe.python == "/opt/venv/bin/python3"
    assert any(package.startswith("humanize==") for package in built.probe.packages)
    program = "import humanize; print(humanize.__file__)"
    assert workshop.inside("python3", "-c", program)[-1].startswith("/opt/venv/")


def test_without_uv_the_images_own_pip_is_used(workshop, monkeypatch):
    monkeypatch.setattr(flat, "_uv", lambda: None)
    built = workshop.build(pip=("humanize",))
    assert any(package.startswith("humanize==") for package in built.probe.packages)
    assert "$ /usr/bin/python3 -m pip install" in workshop.log.read_text()


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


def test_the_image_says_how_it_was_made_without_the_site(workshop):
    """The definition that Apptainer keeps in an image is the constant one."""
    workshop.build(pip=("humanize",))
    argv = [
        workshop.apptainer.path,
        "inspect",
        "--deffile",
        workshop.folder / "image.sif",
    ]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "humanize" not in shown
    assert "stages.sh" in shown
