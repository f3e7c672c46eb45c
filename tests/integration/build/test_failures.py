"""Builds that do not work: each says where, why, and what to do."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec

pytestmark = pytest.mark.apptainer


def check(error: BuildError, code: str, stage: str, words: str = "") -> None:
    assert (error.code, error.stage) == (code, stage), error
    assert words in error.render()
    assert error.hint
    assert len(error.tail) <= 60
    with open(error.log) as log:
        assert log.read().endswith(f"=== failed in {stage}: {code}\n")


def test_unknown_package(workshop):
    error = workshop.error(pip=("no-such-package-xyzzy",))
    check(error, "package-not-found", "pip", "no-such-package-xyzzy")
    assert "uv pip compile" in error.command


def test_unknown_version(workshop):
    check(workshop.error(pip=("humanize==99.1",)), "package-not-found", "pip")


def test_unknown_debian_package(workshop):
    error = workshop.error(apt=("no-such-debian-package",))
    check(error, "package-not-found", "apt", "Unable to locate package")


def test_unknown_tag(workshop):
    check(workshop.error("python:9.9"), "base-not-found", "resolve", "python:9.9")


def test_unknown_repository(workshop):
    check(workshop.error("nothing/here:1"), "base-not-found", "resolve")


def test_registry_down(workshop):
    with pytest.raises(BuildError) as caught:
        workshop.build_spec(ImageSpec("127.0.0.1:1/python:3.11", "docker"))
    check(caught.value, "registry-unreachable", "resolve")


def test_no_such_file(workshop):
    with pytest.raises(BuildError) as caught:
        workshop.build_spec(ImageSpec("/nonexistent.sif", "localimage"))
    check(caught.value, "base-not-found", "resolve")


def test_another_python_is_found_out_before_anything_is_installed(workshop):
    error = workshop.error(python="3.12", apt=("tree",), pip=("humanize",))
    check(error, "python-mismatch", "resolve", "Python 3.11")
    assert "apt-get" not in workshop.log.read_text()


def test_no_python_for_packages(workshop):
    error = workshop.error("nopython:latest", pip=("humanize",))
    check(error, "no-python", "pip")


def test_no_python_where_one_is_asked_for(workshop):
    error = workshop.error("nopython:latest", python="3.11", post=("touch /x",))
    check(error, "no-python", "resolve", "3.11 is asked for")
    assert "touch" not in workshop.log.read_text()


def test_post_stops_at_the_first_failing_line(workshop):
    error = workshop.error(post=("echo before", "ls /nonexistent", "echo after"))
    assert (error.code, error.stage) == ("build-failed", "post")
    assert "+ ls /nonexistent" in error.tail
    assert error.tail[-1].startswith("ls: ")
    assert not any("after" in line for line in error.tail)


def test_post_may_not_use_what_is_unset(workshop):
    error = workshop.error(post=("echo $no_such_variable",))
    assert error.stage == "post"


def test_sources_that_need_a_compiler(workshop):
    error = workshop.error(pip=("ujson==1.35",))
    check(error, "build-failed", "pip", "build-essential")


def test_index_down(workshop):
    workshop.environ |= {"PIP_INDEX_URL": "https://127.0.0.1:1/simple"}
    error = workshop.error(pip=("humanize",))
    check(error, "index-unreachable", "pip", "127.0.0.1:1")


def test_an_image_that_is_too_large(workshop):
    config = workshop.config(max_image_size=10**6)
    check(workshop.error(config=config), "image-too-large", "policy")


def test_an_image_that_breaks_its_own_shell(workshop):
    error = workshop.error(post=("rm /bin/sh", "true"))
    assert (error.stage, error.code) == ("probe", "build-failed")
