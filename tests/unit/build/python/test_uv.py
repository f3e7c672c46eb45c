"""How uv is called on the host, and what of its words is passed on."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.inventory import Package
from globus_compute_apptainer.build.python import uv
from globus_compute_apptainer.build.python.resolution import Pin
from globus_compute_apptainer.build.python.uv import Follower, HostUv
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.errors import BuildError

SAID = """\
numpy==2.1.0 \\
    --hash=sha256:00
w @ https://h/w.whl \\
    --hash=sha256:00
Resolved 2 packages in 3ms
Downloading numpy (15.0MiB)
 Downloaded numpy
      Built srconly==1.0
Installed 2 packages in 17ms
 + numpy==2.1.0"""


def test_the_lock_that_uv_prints_is_not_passed_on(make_job, told):
    job = make_job()
    job.enter("pip")
    follower = Follower(job, 2)
    for line in SAID.splitlines():
        follower.line(line)
    assert follower.said[0] == "Resolved 2 packages in 3ms"
    assert list(job.transcript.tail) == follower.said
    steps = [one for one in told if isinstance(one, events.Progress)]
    assert [(s.done, s.total, s.unit, s.what) for s in steps] == [
        (1, 2, "packages", "numpy"),
        (2, 2, "packages", "srconly"),
    ]


def test_what_is_held_is_passed_on_when_released(make_job):
    job = make_job()
    job.enter("pip")
    follower = Follower(job, held=True)
    follower.line("error: no")
    assert not job.transcript.tail
    follower.release()
    assert list(job.transcript.tail) == ["error: no"]


def test_a_place_for_wheels_is_added():
    assert uv.with_links({}, "file:///a") == {"UV_FIND_LINKS": "file:///a"}
    more = uv.with_links({"UV_FIND_LINKS": "/b,/c", "X": "1"}, "file:///a")
    assert more == {"UV_FIND_LINKS": "/b,/c,file:///a", "X": "1"}
    assert uv.with_links({"X": "1"}, "") == {"X": "1"}


def test_hashes_must_be_there_where_all_are_known():
    known, unknown = Pin("a", "1", ("sha256:00",)), Pin("b", "1")
    assert uv.hash_options([known]) == ["--require-hashes"]
    assert uv.hash_options([known, unknown]) == []


def test_stand_ins_lie_at_the_same_place_for_the_same_packages(tmp_path: Path):
    have = [Package("a", "1.0"), Package("b", "2.0")]
    place = uv.stand_in_folder(tmp_path, have)
    assert len(list(place.iterdir())) == 2
    assert uv.stand_in_folder(tmp_path, list(reversed(have))) == place
    assert uv.stand_in_folder(tmp_path, have[:1]) != place
    assert len(list((tmp_path / "standins").iterdir())) == 2


@pytest.fixture
def shown(make_job, tmp_path: Path, monkeypatch):
    """What a program in uv's place sees."""

    def show(site: SiteAccess) -> dict[str, str]:
        program = tmp_path / "uv"
        program.write_text("#!/bin/sh\nenv\n")
        program.chmod(0o755)
        monkeypatch.setattr(uv, "find", lambda: program)
        monkeypatch.setenv("NETRC", "/secret")
        job = make_job(site=site)
        follower = Follower(job, held=True)
        assert HostUv(job, tmp_path / "packages", tmp_path)(["x"], follower)
        return dict(line.partition("=")[::2] for line in follower.said)

    return show


def test_uv_on_the_host_sees_the_site_and_nothing_else(shown, tmp_path: Path):
    host = {"PATH": "/usr/bin:/bin", "UV_INDEX": "https://h/simple"}
    found = shown(SiteAccess(host=host))
    settings = Path(found["UV_CONFIG_FILE"])
    assert 'url = "https://h/simple"' in settings.read_text()
    assert "UV_INDEX" not in found
    assert found["UV_CACHE_DIR"] == str(tmp_path / "packages/uv")
    assert found["HOME"] == str(tmp_path / "home")
    assert found["UV_PYTHON_DOWNLOADS"] == "never"
    assert "NETRC" not in found


def test_no_settings_of_the_site_move_the_cache(shown, tmp_path: Path):
    found = shown(SiteAccess(host={"PATH": "/bin", "UV_CACHE_DIR": "/elsewhere"}))
    assert found["UV_CACHE_DIR"] == str(tmp_path / "packages/uv")


def test_without_uv(make_job, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(uv, "find", lambda: None)
    job = make_job()
    with pytest.raises(BuildError, match="uv is not installed"):
        HostUv(job, tmp_path, tmp_path)(["x"], Follower(job))


def test_what_a_killed_uv_left_in_its_cache_is_removed(tmp_path: Path):
    (tmp_path / ".tmpA/archive").mkdir(parents=True)
    for name in (".tmpB", ".lock", "CACHEDIR.TAG"):
        (tmp_path / name).touch()
    uv.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "CACHEDIR.TAG"]


def test_but_not_while_another_uv_is_at_work(tmp_path: Path):
    (tmp_path / ".tmpA").mkdir()
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as uv does
        uv.sweep(tmp_path)
    assert (tmp_path / ".tmpA").exists()


def test_no_cache_is_no_trouble(tmp_path: Path):
    uv.sweep(tmp_path / "none")
    assert not (tmp_path / "none").exists()
