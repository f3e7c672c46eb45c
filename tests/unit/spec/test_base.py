"""Base images: agents, references, normal forms."""

import pytest

from globus_compute_apptainer.spec.base import (
    AGENTS,
    agent,
    qualified,
    qualified_pattern,
    reference,
)
from globus_compute_apptainer.spec.refusal import Refusal

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("python", ("docker", "python:latest")),
        ("python:3.11-slim", ("docker", "python:3.11-slim")),
        ("docker://python:3.11", ("docker", "python:3.11")),
        ("docker.io/library/python:3.11", ("docker", "python:3.11")),
        ("index.docker.io/library/python", ("docker", "python:latest")),
        ("library/python", ("docker", "python:latest")),
        ("docker.io/org/x", ("docker", "org/x:latest")),
        ("docker.io/a.b/x", ("docker", "docker.io/a.b/x:latest")),
        ("docker.io/localhost/x", ("docker", "docker.io/localhost/x:latest")),
        ("docker:24", ("docker", "docker:24")),
        ("GHCR.io/org/x:V1", ("docker", "ghcr.io/org/x:V1")),
        ("127.0.0.1:5000/a:3.11-slim", ("docker", "127.0.0.1:5000/a:3.11-slim")),
        ("localhost/x", ("docker", "localhost/x:latest")),
        ("reg:5000/a/b__c/d--e", ("docker", "reg:5000/a/b__c/d--e:latest")),
        (f"python@sha256:{HEX}", ("docker", f"python@sha256:{HEX}")),
        (f"python:3.11@sha256:{HEX}", ("docker", f"python@sha256:{HEX}")),
        (f"h/p@sha512:{HEX}{HEX}", ("docker", f"h/p@sha512:{HEX}{HEX}")),
        ("oras://ghcr.io/org/x.sif", ("oras", "ghcr.io/org/x.sif:latest")),
        ("oras://h:1/x:2", ("oras", "h:1/x:2")),
        ("library://user/col/img:1", ("library", "user/col/img:1")),
        ("library://alpine", ("library", "alpine:latest")),
        ("library://a/b/c:sha256.ab", ("library", "a/b/c:sha256.ab")),
        ("/i/x.sif", ("localimage", "/i/x.sif")),
        ("/i/./y//x.sif", ("localimage", "/i/y/x.sif")),
        ("localimage:/i/x.sif", ("localimage", "/i/x.sif")),
        ("localimage:///i/x.sif", ("localimage", "/i/x.sif")),
        ("docker-archive:/i/x.tar", ("docker-archive", "/i/x.tar")),
        ("oci-archive:///i/x.tar", ("oci-archive", "/i/x.tar")),
        ("oci:/i/layout", ("oci", "/i/layout")),
        ("oci:/i/layout/:v1", ("oci", "/i/layout:v1")),
    ],
)
def test_normal_form(written, normal):
    assert reference(written) == normal
    again = f"{normal[0]}://{normal[1]}"
    assert reference(again) == reference(normal[1], normal[0]) == normal


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "Python",
        "python:",
        "python:-x",
        "python:.x",
        "python:" + "x" * 129,
        "python:3.11\n",
        "python\nBootstrap: localimage",
        "python 3",
        "python;id",
        "python'",
        'python"',
        "python#x",
        "python$(id)",
        "python{{x}}",
        "-python",
        "--help",
        "_python",
        "py__",
        "a//b",
        "a/",
        "/a",
        "a:1:2",
        "a:1/b:2:3",
        "python@",
        "python@sha256:abc",
        f"python@sha256:{HEX.upper()}",
        f"python@md5:{HEX[:32]}",
        f"@sha256:{HEX}",
        "user:pw@host/x",
        "docker://user:pw@host/x",
        "docker:///x",
        "docker://docker://x",
        "http://x",
        "https://hub.docker.com/_/python",
        "shub://x",
        "docker-daemon:x:latest",
        "file:///x.sif",
        "DOCKER://x",
        "oras://x",
        "oras://org/x",
        "library://",
        "library://a/b/c/d/e",
        "library://a b",
        "library:///a",
        "library://a:b,c",
        "[::1]:5000/x",
        "h:port/x",
        "h:123456/x",
        "a..b/x",
        "x.sif",
        "./x.sif",
        "~/x.sif",
        "$HOME/x.sif",
        "/i/../x.sif",
        "//i/x.sif",
        "/i/x y.sif",
        "/i/x'.sif",
        "/i/x\n.sif",
        "/i/x,y.sif",
        "/i/x:y.sif",
        "/i/é.sif",
        "/i/sandbox",
        "localimage:/i/sandbox",
        "localimage:x.sif",
        "localimage:",
        "docker-archive:x.tar",
        "docker-archive://x.tar",
        "docker-archive:////x.tar",
        "docker-archive:/i/x.tar:tag",
        "oci:latest",
        "oci:/i:",
        "oci:/i:a b",
        "oci-archive:/../x",
        "pÿthon",
        "a" * 600,
        "a" * 300,
    ],
)
def test_refused(written):
    with pytest.raises(Refusal):
        reference(written)


def test_the_stated_agent_completes_the_reference():
    assert reference("/i/x.tar", "docker-archive") == ("docker-archive", "/i/x.tar")
    assert reference("/i/x.sif", "localimage") == ("localimage", "/i/x.sif")
    assert reference("ghcr.io/o/i", "oras") == ("oras", "ghcr.io/o/i:latest")
    assert reference("docker://x", "docker") == ("docker", "x:latest")


@pytest.mark.parametrize(
    ("written", "stated"),
    [("docker://x", "oras"), ("/x.sif", "docker"), ("oci:/x", "oci-archive")],
)
def test_two_agents_are_refused(written, stated):
    with pytest.raises(Refusal, match="base_image_type says"):
        reference(written, stated)


@pytest.mark.parametrize("written", ["bookworm", "debootstrap://bookworm"])
def test_a_release_of_debian(written):
    assert reference(written, "debootstrap") == ("debootstrap", "bookworm")
    assert qualified("debootstrap", "bookworm") == "debootstrap://bookworm"


@pytest.mark.parametrize(
    "written",
    ["", "Bookworm", "book worm", "-x", "a/b", "../x", "a;b", "x" * 41, "a:b"],
)
def test_no_release_of_debian(written):
    with pytest.raises(Refusal):
        reference(f"debootstrap://{written}")


def test_agents():
    assert [agent(name) for name in AGENTS] == list(AGENTS)
    for name in ("yum", "zypper"):
        with pytest.raises(Refusal, match="because") as caught:
            agent(name)
        assert caught.value.code == "spec-unsupported"
    with pytest.raises(Refusal) as caught:
        agent("Dokcer")
    assert caught.value.nearest == "docker"


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        ("python:3", "docker://docker.io/library/python:3"),
        ("org/x:3", "docker://docker.io/org/x:3"),
        ("ghcr.io/o/x:3", "docker://ghcr.io/o/x:3"),
        ("python:5000/x:3", "docker://python:5000/x:3"),
    ],
)
def test_qualified(ref, full):
    assert qualified("docker", ref) == full


@pytest.mark.parametrize(
    ("glob", "full"),
    [
        ("*", "*"),
        ("docker://*", "docker://*"),
        ("docker://*.site.org/*", "docker://*.site.org/*"),
        ("docker://python:*", "docker://docker.io/library/python:*"),
        ("docker://python*", "docker://docker.io/library/python*"),
        ("python:3.1?", "docker://docker.io/library/python:3.1?"),
        ("docker://org/*", "docker://docker.io/org/*"),
        ("docker://docker.io/org/*", "docker://docker.io/org/*"),
        ("docker://docker.io/library/python:*", "docker://docker.io/library/python:*"),
        ("docker://docker.io/*", "docker://docker.io/*"),
        ("docker://ghcr.io/*", "docker://ghcr.io/*"),
        ("oras://ghcr.io/*", "oras://ghcr.io/*"),
    ],
)
def test_globs_are_qualified_like_references(glob, full):
    assert qualified_pattern(glob) == full
