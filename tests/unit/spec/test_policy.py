"""What an administrator allows."""

import pytest

from globus_compute_apptainer.errors import PolicyError, SpecError
from globus_compute_apptainer.spec.model import RunSpec, parse
from globus_compute_apptainer.spec.policy import Policy, check

HEX = "ab" * 32


def verdict(raw, **rules):
    """The field that policy denies, or None."""
    spec = parse(raw)
    made = spec.image_spec(default_base="python:{python}-slim", python="3.11")
    try:
        check(made, spec.run_spec, Policy(**rules))
    except PolicyError as error:
        assert error.code == "policy-denied"
        assert error.hint
        assert error.value
        return error.field
    return None


def test_the_defaults_suit_a_shared_endpoint():
    assert verdict({"pip": ["a"], "apt": ["git"], "gpu": "nvidia"}) is None
    assert verdict({"base_image": "oras://h.org/x"}) is None
    assert verdict({"post": ["id"]}) == "post"
    assert verdict({"binds": ["/scratch"]}) == "binds[0]"
    assert verdict({"base_image": "/i/x.sif"}) == "base_image"


@pytest.mark.parametrize(
    ("base_image", "globs", "allowed"),
    [
        ("python:3.11", ("docker://python:*",), True),
        ("docker.io/library/python:3.11", ("docker://python:*",), True),
        ("python:3.11", ("docker://docker.io/library/python:*",), True),
        ("python:3.11", ("docker://docker.io/*",), True),
        ("python:3.11", ("python:3.*",), True),
        ("python:3.11", ("docker://python:3.12", "docker://python:3.11"), True),
        ("python:3.11", ("docker://*",), True),
        ("python:3.11", ("oras://*",), False),
        ("python:3.11", (), False),
        ("pythonx:3.11", ("docker://python:*",), False),
        ("evil/python:3.11", ("docker://python:*",), False),
        ("evil.org/python:3.11", ("docker://python:*",), False),
        ("evil.org/library/python:3.11", ("docker://library/python:*",), False),
        ("python:5000/evil:latest", ("docker://python:*",), False),
        ("python-evil/x", ("docker://python*",), False),
        ("ghcr.io/org/x:1", ("docker://ghcr.io/org/*",), True),
        ("ghcr.io/organ/x:1", ("docker://ghcr.io/org/*",), False),
        (f"python:3.11@sha256:{HEX}", ("docker://python:3.11",), False),
        (f"python:3.11@sha256:{HEX}", ("docker://python@*",), True),
        ("library://u/c/x:1", ("library://u/*",), True),
    ],
)
def test_base_images(base_image, globs, allowed):
    denied = verdict({"base_image": base_image}, base_images=globs)
    assert denied == (None if allowed else "base_image")


@pytest.mark.parametrize(
    ("base_image", "allowed"),
    [
        ("/sw/images/x.sif", True),
        ("/sw//images/./a/x.sif", True),
        ("docker-archive:/sw/images/x.tar", True),
        ("oci:/sw/images/layout:tag", True),
        ("/sw/images2/x.sif", False),
        ("/home/u/x.sif", False),
    ],
)
def test_local_images_are_a_matter_of_directories_only(base_image, allowed):
    rules = {"local_images": ("/sw/images/",), "base_images": ("docker://python:*",)}
    expected = None if allowed else "base_image"
    assert verdict({"base_image": base_image}, **rules) == expected


def test_globs_alone_never_allow_local_images():
    assert verdict({"base_image": "/i/x.sif"}, base_images=("*", "localimage://*"))


@pytest.mark.parametrize(
    ("base_image", "allowed"),
    [
        ("python:3.11", False),
        (f"python@sha256:{HEX}", True),
        ("oras://h.org/x:1", False),
        ("evil/x:sha256.1", False),
        (f"oras://h.org/x:sha256.{HEX}", False),
        ("library://u/c/x:sha256.latest", False),
        (f"library://u/c/x:sha256.{HEX}", True),
        ("library://u/c/x:1", False),
        ("/i/x.sif", True),
    ],
)
def test_digests_can_be_required(base_image, allowed):
    denied = verdict(
        {"base_image": base_image}, require_digest=True, local_images=("/i",)
    )
    assert denied == (None if allowed else "base_image")


def test_steps():
    assert verdict({"apt": ["git"]}, allow_apt=False) == "apt"
    assert verdict({"post": ["id"]}, allow_post=True) is None


def test_runs():
    assert verdict({"gpu": "rocm"}, allow_gpu=False) == "gpu"
    rules = {"binds": ("/scratch", "/data")}
    assert verdict({"binds": ["/scratch/u:/x", "/data"]}, **rules) is None
    assert verdict({"binds": ["/data", "/scratch2"]}, **rules) == "binds[1]"
    assert verdict({"binds": ["/:/host:ro"]}, **rules) == "binds[0]"
    assert verdict({"binds": ["/etc:/data"]}, **rules) is not None
    assert verdict({"binds": ["/etc"]}, binds=("/",)) is None


def test_hints_name_what_is_allowed():
    spec = parse({"base_image": "x"})
    made = spec.image_spec(default_base="", python="")
    with pytest.raises(SpecError) as caught:
        check(made, RunSpec(), Policy(base_images=("docker://python:*",)))
    assert "docker://python:*" in caught.value.hint
    with pytest.raises(SpecError) as caught:
        check(made, RunSpec(binds=("/a:/b:rw",)), Policy())
    assert "no binds" in caught.value.hint
