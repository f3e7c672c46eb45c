"""What a build's programs see of the host, and what is made of what they leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from globus_compute_apptainer import events
from globus_compute_apptainer.build.site import CA_INSIDE, SiteAccess
from globus_compute_apptainer.build.system import kit
from globus_compute_apptainer.build.system.kit import Follower, Kit
from globus_compute_apptainer.build.system.plan import KIT
from globus_compute_apptainer.spec.model import ImageSpec

BEFORE = """\
install ok installed\tlibc6\t2.36-9\tamd64
install ok installed\tgone\t1\tall
deinstall ok config-files\told\t1\tamd64
"""
AFTER = """\
install ok installed\tlibc6\t2.36-10\tamd64
install ok installed\tgit\t1:2.39.5-0+deb12u3\tamd64
install ok installed\tlibc6\t2.36-10\ti386
"""


def laid(folder: Path) -> Kit:
    (folder / "work").mkdir()
    return Kit(folder, ())


def test_the_kit_holds_data_and_one_constant_program(make_job, tmp_path: Path):
    (tmp_path / "ca").write_text("PEM")
    (tmp_path / "wheels").mkdir()
    site = SiteAccess(
        variables={"A": "site", "B": "$(id)"},
        folders=(tmp_path / "wheels",),
        ca_bundle=tmp_path / "ca",
    )
    image = ImageSpec("x", "docker", build_env=(("A", "it's\nmine"),))
    job = make_job(image, site=site)
    markers = ("/marker", ["/below/1", "/below/2"])
    with kit.laid_out(
        job, "post", post=("echo $(id)",), post_build=True, markers=markers
    ) as made:
        folder = made.folder / "kit"
        files = {
            str(path.relative_to(folder)): path.read_text()
            for path in folder.rglob("*")
            if path.is_file()
        }
        program = Path(kit.__file__).parent / "stages.sh"
        assert files.pop("stages.sh") == program.read_text()
        assert files.pop("apt.conf").startswith(site.apt_conf())
        assert files == {
            "post.sh": "echo $(id)\n",
            "post-build.txt": "postBuild\n",
            "environment.sh": "export A='it'\"'\"'s\nmine'\nexport B='$(id)'\n",
            "marker.txt": "/marker\n",
            "layers.txt": "/below/1\n/below/2\n",
            "ca.crt": "PEM",
        }
        work = made.folder / "work"
        assert made.binds[:2] == (f"{folder}:{KIT}:ro", f"{work}:{KIT}/work")
        assert f"{tmp_path}/wheels:{KIT}/site/0:ro" in made.binds
        assert not [line for line in made.binds if CA_INSIDE in line], "it is a copy"
        for line in made.binds:
            source, target = line.split(":")[:2]
            assert Path(source).exists()
            if target.startswith(KIT):
                assert (folder / Path(target).relative_to(KIT)).exists()
    assert list(job.scratch.iterdir()) == []


def test_what_installs_packages_sees_no_folder_of_the_site(make_job, tmp_path: Path):
    """Root of the build's namespace could mount it again, writable."""
    job = make_job(site=SiteAccess(folders=(tmp_path / "wheels",)))
    with kit.laid_out(job, "apt", apt=("git",)) as made:
        assert not [line for line in made.binds if "wheels" in line]


def test_a_kit_is_removed_after_a_failure(make_job):
    job = make_job()
    with pytest.raises(KeyError), kit.laid_out(job, "apt", apt=("git",)) as made:
        (made.work / "deep/er").mkdir(parents=True)
        (made.work / "deep").chmod(0)
        raise KeyError
    assert list(job.scratch.iterdir()) == []


def test_packages_that_came_changed_or_went_are_named(tmp_path: Path):
    made = laid(tmp_path)
    (made.work / "before").write_text(BEFORE)
    (made.work / "after").write_text(AFTER)
    assert made.installed() == {
        "packages": [
            {"name": "git", "version": "1:2.39.5-0+deb12u3", "arch": "amd64"},
            {"name": "libc6", "version": "2.36-10", "arch": "amd64"},
            {"name": "libc6", "version": "2.36-10", "arch": "i386"},
        ],
        "removed": ["gone"],
    }


def test_nothing_waits_for_what_users_leave_there(tmp_path: Path):
    """Nor is anything of the host read through it."""
    made = laid(tmp_path)
    for name in ("before", "ended"):
        os.mkfifo(made.work / name)
    (tmp_path / "host").write_text(AFTER)
    (made.work / "after").symlink_to(tmp_path / "host")
    assert made.installed() == {"packages": []}
    assert made.ended() is None


def test_without_dpkg_there_are_no_packages(tmp_path: Path):
    assert laid(tmp_path).installed() == {"packages": []}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_whatever_users_write_there_is_read(tmp_path: Path, content: bytes):
    made = Kit(tmp_path, ())
    made.work.mkdir(exist_ok=True)
    for name in ("after", "ended"):
        (made.work / name).write_bytes(content)
    assert isinstance(made.installed()["packages"], list)
    assert made.ended() is None or len(made.ended()) == 2


def test_progress_is_told_in_packages(make_job, told: list[events.Event]):
    job = make_job()
    job.enter("apt")
    follower = Follower(job)
    follower.line("1 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.")
    for name in ("libc6:amd64", "git", "tree"):
        follower.line(f"Setting up {name} (1.0) ...")
    seen = [
        (event.done, event.total, event.unit, event.what)
        for event in told
        if isinstance(event, events.Progress)
    ]
    assert seen == [
        (0, 3, "packages", ""),
        (1, 3, "packages", "libc6"),
        (2, 3, "packages", "git"),
        (3, 3, "packages", "tree"),
    ]


def failed(job, folder: Path, status: str, *said: str):
    made = laid(folder)
    (made.work / "ended").write_text(status)
    job.enter("post")
    follower = Follower(job)
    for line in said:
        follower.line(line)
    return kit.failure(job, made, follower)


def test_a_post_that_fails_is_named_with_command_and_status(make_job, tmp_path: Path):
    site = SiteAccess(secrets=("hunter2",))
    error = failed(
        make_job(site=site), tmp_path, "post 128\n", "+ git clone hunter2", "fatal: no"
    )
    assert (error.code, error.stage) == ("build-failed", "post")
    assert error.command == "git clone ****"
    assert "status 128; the last command was `git clone ****`" in error.message
    assert error.tail[-1] == "fatal: no"


def test_a_known_cause_is_told_too(make_job, tmp_path: Path):
    error = failed(
        make_job(), tmp_path, "post 1\n", "+ cp a b", "cp: No space left on device"
    )
    assert error.code == "disk-full"
    assert "status 1" in error.message
    assert "disk is full" in error.message


def test_a_post_build_that_fails_is_named(make_job, tmp_path: Path):
    error = failed(make_job(), tmp_path, "postBuild 127\n", "+ not a trace of post")
    assert "postBuild ended with status 127 (not found)" in error.message
