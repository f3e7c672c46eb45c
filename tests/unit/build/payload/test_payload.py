"""From a spec to the tree, its lock, and the layer."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import stat
import subprocess
import tarfile

import pytest

from globus_compute_apptainer.build import squashfs
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.payload.payload import fetch, payload_layer
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec, parse
from globus_compute_apptainer.spec.policy import Policy
from globus_compute_apptainer.store.shelf import Shelf
from provision.web import git

OPEN = Policy(payload_urls=("*",), allow_post=True)


def targz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, text in files.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(text)
            info.mode = 0o755 if text.startswith("#!") else 0o644
            made.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def fetched(make_job, web, tmp_path):
    """``fetched({"name": "text"}, **fields of the spec)``, through an archive."""
    count = iter(range(100))

    def get(payload=None, policy=OPEN, **spec):
        number = next(count)
        if payload is not None:
            spec["payload_url"] = web.serve(f"/{number}.tar.gz", targz(payload))
        image = parse(spec).image_spec(default_base="docker://x", python="3.11")
        job = make_job(image, policy=policy, scratch=tmp_path / f"scratch{number}")
        return fetch(job)

    return get


@pytest.fixture
def error(fetched):
    def get(*args, **kwargs):
        with pytest.raises(BuildError) as caught:
            fetched(*args, **kwargs)
        return caught.value

    return get


def test_a_spec_without_either_has_none(make_job):
    assert fetch(make_job()) is None


def test_an_archive_is_unpacked_read_and_locked(fetched):
    found = fetched({"code.py": "x = 1", "requirements.txt": "six\n", "apt.txt": "git"})
    assert (found.root / "code.py").read_text() == "x = 1"
    assert found.root.name == "payload"
    assert (found.ingested.pip, found.ingested.apt) == (("six",), ("git",))
    assert found.lock["url"].endswith("/0.tar.gz")
    assert len(found.lock["sha256"]) == 64
    assert found.lock["read"] == ["apt.txt", "requirements.txt"]


def test_a_repository_is_locked_to_its_commit(make_job, web, repository):
    made = repository("r", {"postBuild": "#!/bin/sh\n"})
    job = make_job(ImageSpec("x", "docker", payload=f"git+{web.url}/git/r"))
    found = fetch(job)
    assert found.lock["commit"] == git(made, "rev-parse", "HEAD")
    assert found.ingested.post_build


def test_files_alone_make_a_tree(fetched):
    found = fetched(files={"postBuild": "#!/bin/sh\necho hi\n"})
    assert (found.root / "postBuild").stat().st_mode & stat.S_IXUSR
    assert found.ingested.post_build
    assert "url" not in found.lock


def test_files_of_the_spec_are_laid_over_the_payload(fetched):
    payload = {"requirements.txt": "six\n", "Dockerfile": "FROM x", "m.py": "1"}
    found = fetched(payload, files={"requirements.txt": "attrs\n"})
    assert found.ingested.pip == ("attrs",)
    assert any("Dockerfile" in note for note in found.ingested.notes)


def test_files_of_the_spec_go_where_they_are_read(fetched):
    found = fetched({"binder/apt.txt": "git", "x": "1"}, files={"apt.txt": "curl"})
    assert found.ingested.apt == ("curl",)


def test_start_is_told_with_its_path(fetched):
    assert fetched({"start": "#!/bin/sh\n"}).lock["start"] == "/payload/start"
    found = fetched({"binder/start": "exec", "x": "1"})
    assert found.lock["start"] == "/payload/binder/start"
    assert (found.root / "binder/start").stat().st_mode & stat.S_IXUSR


def test_text_in_utf_16_is_read_as_windows_writes_it(make_job, web, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        data = "six==1.16.0\r\n".encode("utf-16")
        info = tarfile.TarInfo("requirements.txt")
        info.size = len(data)
        made.addfile(info, io.BytesIO(data))
    url = web.serve("/x.tar", buffer.getvalue())
    found = fetch(make_job(ImageSpec("x", "docker", payload=url)))
    assert found.ingested.pip == ("six==1.16.0",)


def test_the_same_files_have_the_same_digest_wherever_they_come_from(
    fetched, make_job, web, repository, tmp_path
):
    files = {"a": "1", "run": "#!/bin/sh\n"}
    repository("r", files)
    image = ImageSpec("x", "docker", payload=f"git+{web.url}/git/r")
    by_git = fetch(make_job(image, scratch=tmp_path / "git"))
    assert by_git.lock["tree"] == fetched(files).lock["tree"]


def test_an_archive_is_checked_against_its_hash(make_job, web):
    data = targz({"a": "1"})
    url = web.serve("/x.tgz", data)
    good = hashlib.sha256(data).hexdigest()
    assert fetch(make_job(ImageSpec("x", "docker", payload=f"{url}#sha256={good}")))
    job = make_job(
        ImageSpec("x", "docker", payload=f"{url}#sha256={'0' * 64}"),
        scratch=web.repositories / "s",
    )
    with pytest.raises(BuildError) as caught:
        fetch(job)
    assert caught.value.code == "payload-changed"


@pytest.mark.parametrize(
    "payload, words",
    [
        ({"environment.yml": "dependencies: [a, : b"}, "environment.yml"),
        ({"environment.yml": "- just a list"}, "environment.yml"),
        ({"requirements.txt": "a b c"}, "requirements.txt"),
        ({"requirements.txt": "-r /etc/passwd"}, "requirements.txt"),
        ({"requirements.txt": "-r ../../etc/passwd"}, "requirements.txt"),
        ({"apt.txt": "--option"}, "apt.txt"),
        ({"runtime.txt": "python"}, "runtime.txt"),
        ({"Dockerfile": "FROM x"}, "without Docker"),
        ({"Pipfile": "not toml"}, "Pipfile"),
        ({"Pipfile.lock": "{"}, "Pipfile.lock"),
        ({"pyproject.toml": "[["}, "pyproject.toml"),
        ({"binder/a": "", ".binder/a": ""}, "binder"),
        ({"requirements.txt": "a" * 1_100_000}, "1 MiB"),
    ],
)
def test_files_that_cannot_be_accepted_are_named(error, payload, words):
    found = error(payload)
    assert (found.code, found.stage) == ("payload-invalid", "payload")
    assert words in found.message


def test_links_are_read_inside_the_tree_only(make_job, web, repository, tmp_path):
    made = repository("r", {"real/requirements.txt": "six\n"})
    (made / "binder").symlink_to("real")
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "link")
    image = ImageSpec("x", "docker", payload=f"git+{web.url}/git/r")
    assert fetch(make_job(image, scratch=tmp_path / "1")).ingested.pip == ("six",)
    (made / "requirements.txt").symlink_to("/etc/passwd")
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "hostile")
    with pytest.raises(BuildError) as caught:
        fetch(make_job(image, scratch=tmp_path / "2"))
    assert caught.value.code == "payload-invalid"


def test_policy_holds_for_what_the_payload_asks(error, fetched):
    closed = Policy(payload_urls=("*",), allow_apt=False, conda_channels=("own",))
    for payload in (
        {"postBuild": "#!/bin/sh\n"},
        {"binder/postBuild": "#!/bin/sh\n", "x": ""},
        {"install.R": "install.packages('x')"},
        {"apt.txt": "git"},
        {"environment.yml": "channels: [other]\ndependencies: [x]"},
    ):
        found = error(payload, policy=closed)
        assert (found.code, found.stage) == ("policy-denied", "policy")
        assert found.hint
        assert fetched(payload, policy=None)


@pytest.fixture
def below(tmp_path):
    fields = {f.name: "" for f in dataclasses.fields(Inventory)}
    fields |= {"has_bash": True, "ours": (), "python": None}
    return Below("sha256:" + "0" * 64, tmp_path / "base.sif", Inventory(**fields))


def test_the_layer_holds_files_marker_and_path(fetched, make_job, below, tmp_path):
    old = os.umask(0o077)
    try:
        found = fetched({"d/m.py": "x = 1", "run": "#!/bin/sh\n"})
        shelf = Shelf(tmp_path / "v2", "layers")
        layer = payload_layer(make_job(), below, found, shelf)
    finally:
        os.umask(old)
    argv = ["unsquashfs", "-no-progress", "-q", "-d", tmp_path / "out", layer.file]
    subprocess.run(argv, check=True, capture_output=True)
    out = tmp_path / "out"
    assert (out / layer.marker.lstrip("/")).is_file()
    script = out / ".singularity.d/env/96-gc-apptainer-payload.sh"
    show = ["sh", "-euc", f'. "{script}"; echo "$PYTHONPATH"']
    for before, after in (({}, "/payload"), ({"PYTHONPATH": "/a"}, "/payload:/a")):
        done = subprocess.run(show, env=before, capture_output=True, text=True)
        assert done.stdout.strip() == after
    modes = {
        p.relative_to(out).as_posix(): stat.S_IMODE(p.stat().st_mode)
        for p in (out, *out.rglob("*"))
    }
    assert modes["payload/d"] == modes["payload"] == modes["."] == 0o755
    assert modes["payload/run"] == 0o755
    assert modes["payload/d/m.py"] == 0o644
    assert layer.lock["sha256"] == found.lock["sha256"]


def test_the_same_files_are_one_layer_with_two_locks(
    fetched, make_job, below, tmp_path
):
    shelf = Shelf(tmp_path / "v2", "layers")
    one, other = fetched({"a": "1"}), fetched({"a": "1"})
    first = payload_layer(make_job(), below, one, shelf)
    second = payload_layer(make_job(), below, other, shelf)
    assert first.key == second.key
    assert first.file == second.file
    assert first.lock["url"] != second.lock["url"]


def test_a_payload_that_was_changed_since_is_not_packed(
    fetched, make_job, below, tmp_path
):
    found = fetched({"a": "1"})
    (found.root / "a").write_text("2")
    with pytest.raises(BuildError, match="was changed"):
        payload_layer(make_job(), below, found, Shelf(tmp_path / "v2", "layers"))


def test_an_installed_project_is_not_on_the_path(fetched, make_job, below, tmp_path):
    found = fetched({"setup.py": "", "m.py": ""})
    assert found.ingested.projects == (".",)
    layer = payload_layer(make_job(), below, found, Shelf(tmp_path / "v2", "layers"))
    argv = ["unsquashfs", "-l", layer.file]
    listed = subprocess.run(argv, capture_output=True, text=True).stdout
    assert "payload/m.py" in listed
    assert ".singularity.d" not in listed


def test_a_host_without_squashfs_says_so(
    fetched, make_job, below, tmp_path, monkeypatch
):
    found = fetched({"a": "1"})
    monkeypatch.setattr(squashfs, "program", lambda: "/no/such/mksquashfs")
    job = make_job(apptainer=Apptainer("/no/such", "1.4.5"))
    with pytest.raises((BuildError, OSError)):
        payload_layer(job, below, found, Shelf(tmp_path / "v2", "layers"))
