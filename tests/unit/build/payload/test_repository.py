"""Real repositories, served by git's own program over HTTP."""

from __future__ import annotations

import os
import socket
import stat
import subprocess

import pytest

from globus_compute_apptainer.build.payload.contents import Limits
from globus_compute_apptainer.build.payload.repository import fetch_repository
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.policy import Policy
from provision.web import git

HTTP = Policy(payload_urls=("git+http://*",))


@pytest.fixture
def fetched(make_job, web, tmp_path):
    """``fetched("name", "ref")``: the directory and the commit's name."""
    count = iter(range(100))

    def fetch(name, ref="", **changes):
        number = next(count)
        job = make_job(scratch=tmp_path / f"scratch{number}", **changes)
        job.enter("payload")
        root = tmp_path / f"root{number}"
        url = f"git+{web.url}/git/{name}" + (f"#{ref}" if ref else "")
        return root, fetch_repository(job, url, root, Limits(job, 10_000_000))

    return fetch


@pytest.fixture
def error(fetched):
    def check(name, ref="", **changes):
        with pytest.raises(BuildError) as caught:
            fetched(name, ref, **changes)
        return caught.value

    return check


def test_the_default_branch(fetched, repository):
    made = repository("r", {"a": "1", "d/b.sh": "#!/bin/sh\n"})
    root, commit = fetched("r")
    assert commit == git(made, "rev-parse", "HEAD")
    assert sorted(p.name for p in root.rglob("*")) == ["a", "b.sh", "d"]
    assert (root / "d/b.sh").stat().st_mode & stat.S_IXUSR
    assert (root / "a").stat().st_mtime == 1704164645


@pytest.fixture
def history(repository):
    made = repository("r", {"a": "1"})
    first = git(made, "rev-parse", "HEAD")
    git(made, "tag", "-a", "v1", "-m", "v1")
    (made / "a").write_text("2")
    git(made, "commit", "--quiet", "-am", "second")
    git(made, "branch", "other/one")
    (made / "a").write_text("3")
    git(made, "commit", "--quiet", "-am", "third")
    return made, first


@pytest.mark.parametrize("ref, text", [("v1", "1"), ("other/one", "2"), ("main", "3")])
def test_tags_and_branches(fetched, history, ref, text):
    root, commit = fetched("r", ref)
    assert (root / "a").read_text() == text
    assert commit == git(history[0], "rev-parse", f"{ref}^{{commit}}")


@pytest.mark.parametrize("length", [40, 12, 7])
def test_commits_in_full_and_shortened(fetched, history, length):
    root, commit = fetched("r", history[1][:length])
    assert (root / "a").read_text() == "1"
    assert commit == history[1]


def test_a_commit_that_the_server_gives_only_from_its_branches(fetched, history):
    git(history[0], "config", "uploadpack.allowReachableSHA1InWant", "false")
    git(history[0], "config", "uploadpack.allowAnySHA1InWant", "false")
    assert fetched("r", history[1])[1] == history[1]


@pytest.mark.parametrize("ref", ["no-such", "v9", "deadbeef", "d" * 40])
def test_a_ref_that_does_not_exist_is_named(error, history, ref):
    found = error("r", ref)
    assert (found.code, found.stage) == ("payload-not-found", "payload")
    assert ref in found.message
    assert "#" in found.hint


def test_a_repository_that_does_not_exist(error):
    assert error("nothing").code == "payload-not-found"


def test_nobody_there(make_job, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"git+http://127.0.0.1:{free.getsockname()[1]}/r"
    job = make_job()
    with pytest.raises(BuildError) as caught:
        fetch_repository(job, url, tmp_path / "root", Limits(job, 1000))
    assert caught.value.code == "payload-unreachable"
    assert any("git fetch" in line for line in [caught.value.command])


def test_a_server_that_wants_a_login_is_not_given_one(
    error, web, monkeypatch, tmp_path
):
    helper = tmp_path / "askpass"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho secret\n")
    helper.chmod(0o755)
    monkeypatch.setenv("GIT_ASKPASS", str(helper))
    web.status("/git/r/info/refs", 401, WWW_Authenticate='Basic realm="x"')
    assert error("r").code == "payload-not-found"
    assert not (tmp_path / "asked").exists()


def test_nothing_of_this_hosts_git_takes_part(
    fetched, repository, monkeypatch, tmp_path
):
    repository("r", {"a": "1", ".gitattributes": "* filter=evil\n"})
    home = tmp_path / "home"
    hooks = home / "template/hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[init]\n templateDir = {home}/template\n[core]\n hooksPath = {hooks}\n"
        f'[filter "evil"]\n smudge = touch {tmp_path}/ran; cat\n'
        '[url "http://nowhere.invalid/"]\n insteadOf = http://127.0.0.1\n'
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert (fetched("r")[0] / "a").read_text() == "1"
    assert not (tmp_path / "ran").exists()


def test_git_lfs_files_stay_pointers(fetched, repository):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    repository("r", {"big": pointer, ".gitattributes": "big filter=lfs diff=lfs\n"})
    assert (fetched("r")[0] / "big").read_text() == pointer


def test_what_would_be_written_is_counted_before(error, repository, tmp_path):
    made = repository("r", {"a": "1"})
    (made / "zeros").write_bytes(b"\0" * 20_000_000)
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "bomb")
    assert error("r").code == "payload-too-large"
    assert not list(tmp_path.glob("root*/zeros"))


def test_a_large_history_is_cut_off_while_it_comes(error, repository):
    made = repository("r", {"a": "1"})
    (made / "noise").write_bytes(os.urandom(3_000_000))
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "large")
    config = BuildConfig(timeout=60.0, max_payload_size=100_000)
    assert error("r", config=config).code == "payload-too-large"


@pytest.fixture
def remote(web):
    """Relative URLs of submodules are looked up beside the origin."""

    def set_origin(folder):
        git(folder, "remote", "add", "origin", f"{web.url}/git/{folder.name}")

    return set_origin


def test_submodules_come_along_at_their_commits(fetched, web, repository, remote):
    inner = repository("inner", {"i": "then"})
    middle = repository("middle", {"m": "1"})
    git(middle, "submodule", "--quiet", "add", f"{web.url}/git/inner", "sub/inner")
    git(middle, "commit", "--quiet", "-m", "sub")
    outer = repository("outer", {"o": "1"})
    remote(outer)
    git(outer, "submodule", "--quiet", "add", "../middle", "middle")
    git(outer, "commit", "--quiet", "-m", "sub")
    (inner / "i").write_text("now")
    git(inner, "commit", "--quiet", "-am", "later")
    root, _ = fetched("outer", policy=HTTP)
    assert (root / "middle/sub/inner/i").read_text() == "then"
    assert not list(root.rglob(".git"))


@pytest.mark.parametrize(
    "url, code",
    [
        ("file:///etc", "spec-invalid"),
        ("ssh://git@127.0.0.1/x", "spec-invalid"),
        ("ext::sh -c touch% /tmp/x", "spec-invalid"),
        ("/etc", "spec-invalid"),
        ("https://127.0.0.1/x", "policy-denied"),
    ],
)
def test_submodules_from_elsewhere_are_refused(error, repository, url, code):
    made = repository("r", {"a": "1"})
    commit = git(made, "rev-parse", "HEAD")
    git(made, "update-index", "--add", "--cacheinfo", f"160000,{commit},sub")
    (made / ".gitmodules").write_text(
        f'[submodule "sub"]\n\tpath = sub\n\turl = {url}\n'
    )
    git(made, "add", ".gitmodules")
    git(made, "commit", "--quiet", "-m", "sub")
    found = error("r", policy=HTTP)
    assert found.code == code
    assert "submodule" in found.message


def test_a_submodule_that_nothing_is_known_of_is_left_empty(fetched, repository):
    made = repository("r", {"a": "1"})
    commit = git(made, "rev-parse", "HEAD")
    git(made, "update-index", "--add", "--cacheinfo", f"160000,{commit},sub")
    git(made, "commit", "--quiet", "-m", "sub")
    root, _ = fetched("r")
    assert list((root / "sub").iterdir()) == []


def test_the_sites_certificates_are_trusted(
    make_job, repository, web, tls_web, certificate, tmp_path
):
    made = repository("r", {"a": "1"})
    made.rename(tls_web.repositories / "r")
    url = f"git+{tls_web.url}/git/r"
    for bundle, code in ((None, "payload-unreachable"), (certificate, "")):
        site = SiteAccess(ca_bundle=bundle)
        job = make_job(site=site, scratch=tmp_path / f"scratch{code}")
        found = ""
        try:
            fetch_repository(job, url, tmp_path / f"root{code}", Limits(job, 1000))
        except BuildError as error:
            found = error.code
        assert found == code


def test_nothing_of_git_is_left_in_the_scratch_directory(fetched, repository, tmp_path):
    repository("r", {"a": "1"})
    fetched("r")
    assert list((tmp_path / "scratch0").iterdir()) == []


def test_a_host_without_git_says_so(error, repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = error("r")
    assert found.code == "payload-unreachable"
    assert "archive" in found.hint


@pytest.mark.parametrize("path", ["a", "a/b"])
def test_a_submodule_behind_a_link_is_refused(error, repository, tmp_path, path):
    """A tree that git would not make: a link and a directory of one name."""
    victim = tmp_path / "victim"
    (victim / "b").mkdir(parents=True)
    inner = git(repository("inner", {"written": "x"}), "rev-parse", "HEAD")
    outer = repository("outer", {"f": "x"})

    def stored(kind, data):
        argv = ["git", "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
        done = subprocess.run(argv, input=data, cwd=outer, capture_output=True)
        return bytes.fromhex(done.stdout.decode())

    listed = f'[submodule "s"]\n\tpath = {path}\n\turl = ../inner\n'.encode()
    tree = b"100644 .gitmodules\0" + stored("blob", listed)
    if path == "a":
        tree += b"160000 a\0" + bytes.fromhex(inner)
    else:
        tree += b"40000 a\0" + stored("tree", b"160000 b\0" + bytes.fromhex(inner))
    tree += b"120000 a\0" + stored("blob", bytes(victim))
    made = git(outer, "commit-tree", stored("tree", tree).hex(), "-m", "x")
    git(outer, "update-ref", "refs/heads/main", made)
    found = error("outer", policy=HTTP)
    assert found.code == "payload-invalid"
    assert [*victim.iterdir()] == [victim / "b"]
    assert list((victim / "b").iterdir()) == []
