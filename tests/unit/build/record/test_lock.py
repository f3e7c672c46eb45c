"""Locks: put together, read back strictly, compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.record import lock
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec import model

SHA = "0123456789abcdef" * 4
BASE = {
    "reference": "docker://python:3.11-slim",
    "digest": f"sha256:{SHA}",
    "resolved_at": "2026-11-22T12:00:00+00:00",
    "kind": "registry",
}
APT = {
    "packages": [
        {"name": "git", "version": "1:2.39.5-0+deb12u2", "arch": "amd64"},
        {"name": "libcurl3-gnutls", "version": "7.88.1-10", "arch": "amd64"},
    ],
    "requested": ["git"],
}
PIP = {
    "packages": [
        {"name": "six", "version": "1.17.0", "hashes": [f"sha256:{SHA}"]},
        {"name": "mine", "version": "1.0", "hashes": [], "url": "https://h/mine.zip"},
    ],
    "requirements": ["six"],
    "indexes": ["https://pypi.org/simple"],
    "uv": "0.9.1",
    "way": "host",
    "notes": [],
}
CONDA = {
    "packages": [
        {
            "name": "_libgcc_mutex",
            "version": "0.1",
            "build": "conda_forge",
            "channel": "conda-forge",
            "subdir": "linux-64",
            "url": "https://conda.anaconda.org/conda-forge/linux-64/x.conda",
            "sha256": SHA,
            "md5": SHA[:32],
            "size": 7,
        }
    ],
    "channels": ["conda-forge"],
}
PAYLOAD = {"url": "git+https://h/r.git#main", "commit": SHA[:40], "files": 3}
SPEC = {"format": 1, "agent": "docker", "base_image": "python:3.11-slim"}


def document(**changes: Any) -> dict[str, Any]:
    whole = {
        "format": 1,
        "spec": SPEC,
        "base": BASE,
        "apt": APT,
        "conda": CONDA,
        "pip": PIP,
        "payload": PAYLOAD,
        "tools": {"uv": "0.9.1"},
    }
    merged = copy.deepcopy({**whole, **changes})
    return {name: part for name, part in merged.items() if part is not None}


def layer(kind: str, part: dict[str, Any]) -> Layer:
    return Layer(kind, f"sha256:{SHA}", Path("/nowhere"), part)


def test_a_lock_has_the_parts_that_the_image_has() -> None:
    layers = [layer("apt", APT), layer("pip", PIP), layer("bytecode", {})]
    made = lock.assemble(BASE, layers, {"uv": "0.9.1", "apptainer": "1.4.5"}, SPEC)
    assert made == {
        "format": 1,
        "spec": SPEC,
        "base": BASE,
        "apt": APT,
        "pip": PIP,
        "tools": {"apptainer": "1.4.5", "uv": "0.9.1"},
    }
    assert json.loads(json.dumps(made)) == made
    read = lock.parse(json.dumps(made))
    assert (read.conda, read.payload) == (None, None)
    assert lock.differences(read, made) == []


def test_layers_tell_the_tools_that_made_them() -> None:
    conda = {**CONDA, "solver": "rattler 0.28.0"}
    layers = [layer("conda", conda), layer("pip", PIP)]
    made = lock.assemble(BASE, layers, {"mksquashfs": "4.5.1"})
    versions = {"mksquashfs": "4.5.1", "rattler": "0.28.0", "uv": "0.9.1"}
    assert made["tools"] == versions


def test_what_makers_get() -> None:
    read = lock.parse(json.dumps(document()))
    assert read.base_digest == f"sha256:{SHA}"
    assert read.apt == ("git=1:2.39.5-0+deb12u2", "libcurl3-gnutls=7.88.1-10")
    assert read.pip == (
        "mine @ https://h/mine.zip",
        f"six==1.17.0 --hash=sha256:{SHA}",
    )
    assert read.conda == tuple(CONDA["packages"])
    assert read.payload == {"url": PAYLOAD["url"], "commit": SHA[:40]}


def test_the_lock_in_a_manifest_is_read_with_its_spec() -> None:
    inner = document(spec=None)
    read = lock.parse(json.dumps({"spec": SPEC, "lock": inner, "format": 2}))
    assert read.spec == SPEC
    assert read.request == {
        "base_image": "python:3.11-slim",
        "base_image_type": "docker",
    }


def test_a_request_is_the_same_image() -> None:
    spec = model.parse(
        {"base_image": "python:3.11-slim", "pip": ["six"], "apt": ["git"]}
    )
    image = spec.image_spec(default_base="", python="3.11")
    read = lock.parse(json.dumps(document(spec=json.loads(image.canonical()))))
    again = model.parse(read.request).image_spec(default_base="", python="3.11")
    assert again == image


@pytest.mark.parametrize(
    ("agent", "reference", "pinned"),
    [
        ("docker", "python:3.11-slim", f"python@sha256:{SHA}"),
        ("docker", "h:5000/o/i:t", f"h:5000/o/i@sha256:{SHA}"),
        ("docker", f"python@sha256:{'0' * 64}", f"python@sha256:{SHA}"),
        ("oras", "ghcr.io/o/i:t", f"ghcr.io/o/i@sha256:{SHA}"),
        ("localimage", "/a/b.sif", "/a/b.sif"),
        ("docker-archive", "/a/b.tar:x", "/a/b.tar:x"),
    ],
)
def test_a_pinned_image(agent: str, reference: str, pinned: str) -> None:
    image = model.ImageSpec(
        reference, agent, apt=("git",), payload="git+https://h/r.git#main"
    )
    found = lock.parse(json.dumps(document())).pinned(image)
    assert found.base_image == pinned
    assert found.apt == ("git=1:2.39.5-0+deb12u2", "libcurl3-gnutls=7.88.1-10")
    assert found.payload == f"git+https://h/r.git#{SHA[:40]}"


def test_an_archive_is_pinned_by_its_hash() -> None:
    part = {"url": "https://h/a.zip", "sha256": SHA}
    found = lock.parse(json.dumps(document(payload=part)))
    image = model.ImageSpec("b", "docker", payload="https://h/a.zip")
    assert found.pinned(image).payload == f"https://h/a.zip#sha256={SHA}"
    # Of files that the spec brings itself there is nothing to pin.
    none = lock.parse(json.dumps(document(payload={"tree": "sha256:0"})))
    assert none.payload is None
    assert none.pinned(image).payload == image.payload


def broken() -> list[tuple[str, dict[str, Any]]]:
    def with_package(part: dict[str, Any], **changes: Any) -> dict[str, Any]:
        package = {**part["packages"][0], **changes}
        return {**part, "packages": [package]}

    return [
        ("format", document(format=2)),
        ("unknown part", document(more={})),
        ("base is missing", document(base=None)),
        ("base.digest", document(base={**BASE, "digest": "sha256:abc"})),
        ("base.reference", document(base={**BASE, "reference": "a b"})),
        ("apt.packages", document(apt={})),
        ("apt.packages[0]", document(apt={"packages": ["git"]})),
        ("name", document(apt=with_package(APT, name="-o APT::x"))),
        ("version", document(apt=with_package(APT, version="1 2"))),
        ("name", document(pip=with_package(PIP, name="--index-url=http://x"))),
        ("version", document(pip=with_package(PIP, version="1\n-r /etc/passwd"))),
        ("hashes", document(pip=with_package(PIP, hashes="sha256:0"))),
        ("hashes[0]", document(pip=with_package(PIP, hashes=["md5:0"]))),
        ("url", document(pip=with_package(PIP, url="https://h/a b"))),
        ("url", document(conda=with_package(CONDA, url="ftp://h/x"))),
        ("build", document(conda=with_package(CONDA, build=3))),
        ("sha256", document(conda=with_package(CONDA, sha256="0"))),
        ("checksum", document(conda=with_package(CONDA, sha256=None, md5=None))),
        ("payload.commit", document(payload={"commit": "main"})),
        ("payload", document(payload=[])),
        ("spec", document(spec=[])),
    ]


@pytest.mark.parametrize(("says", "bad"), broken())
def test_what_is_not_sound_is_refused(says: str, bad: dict[str, Any]) -> None:
    with pytest.raises(BuildError) as caught:
        lock.parse(json.dumps(bad))
    assert caught.value.code == "lock-invalid"
    assert says in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000])
def test_what_is_no_lock_at_all(text: str) -> None:
    with pytest.raises(BuildError) as caught:
        lock.parse(text)
    assert caught.value.code == "lock-invalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("name version hashes url packages digest build".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(part=st.sampled_from(["base", "apt", "conda", "pip", "payload"]), value=JSON)
def test_anything_at_all_is_a_lock_or_refused(part: str, value: Any) -> None:
    try:
        read = lock.parse(json.dumps(document() | {part: value}))
    except BuildError as error:
        assert error.code == "lock-invalid"
    else:
        for line in (*read.apt, *(read.pip or ())):
            assert "\n" not in line
            assert not line.startswith("-")


def test_differences_name_what_changed() -> None:
    read = lock.parse(json.dumps(document()))
    made = document()
    assert lock.differences(read, made) == []
    made["pip"]["packages"][0]["version"] = "1.18.0"
    made["base"]["digest"] = f"sha256:{'0' * 64}"
    made["conda"]["packages"][0]["build"] = "other"
    del made["apt"]["packages"][1], made["payload"]
    assert lock.differences(read, made) == [
        "apt libcurl3-gnutls:amd64: 7.88.1-10 → not there",
        f"base: sha256:{SHA} → sha256:{'0' * 64}",
        "conda _libgcc_mutex: 0.1=conda_forge → 0.1=other",
        f"payload: {SHA[:40]} → not there",
        "pip six: 1.17.0 → 1.18.0",
    ]


def test_where_something_came_from_makes_no_difference() -> None:
    read = lock.parse(json.dumps(document()))
    made = document(tools={"uv": "9"})
    made["pip"]["indexes"] = ["https://mirror/simple"]
    made["base"]["resolved_at"] = "later"
    assert lock.differences(read, made) == []


def test_what_is_gone_is_said_so() -> None:
    gone = BuildError("no index has it", code="package-not-found", stage="pip")
    said = lock.unavailable(gone)
    assert (said.code, said.stage) == ("lock-unavailable", "pip")
    assert "no index has it" in said.message
    down = BuildError("the index is down", code="index-unreachable")
    assert lock.unavailable(down) is down


def test_an_image_that_is_not_what_the_lock_says() -> None:
    error = lock.unmet(["pip six: 1 → 2"], log="/l")
    assert (error.code, error.tail, error.log) == (
        "lock-unavailable",
        ("pip six: 1 → 2",),
        "/l",
    )
