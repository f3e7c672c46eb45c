"""What the spec and its payload ask for, put together."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.build.wanted import wanted
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.conda import Conda
from globus_compute_apptainer.spec.ingest import Ingested, ingest
from globus_compute_apptainer.spec.model import ImageSpec


def spec(**fields) -> ImageSpec:
    return ImageSpec("python:3.11-slim", "docker", **fields)


def test_a_spec_without_payload_is_taken_as_it_is() -> None:
    found = wanted(spec(pip=("a",), apt=("b",), post=("c",), python="3.11"), None)
    assert (found.pip, found.apt, found.post) == (("a",), ("b",), ("c",))
    assert (found.python, found.packages) == ("3.11", True)
    assert not (found.projects or found.post_build or found.hashes)


def test_both_are_put_together_once_each() -> None:
    payload = Ingested(pip=("b", "a"), apt=("x",), constraints=("c<2",))
    found = wanted(spec(pip=("a", "z"), apt=("x", "y")), payload)
    assert (found.pip, found.apt) == (("a", "b", "z"), ("x", "y"))
    assert found.constraints == ("c<2",)


def test_channels_of_the_spec_come_first_and_variables_stay() -> None:
    ours = Conda(("numpy",), ("mine",))
    theirs = Conda(("scipy",), ("conda-forge", "mine"), (("A", "b"),))
    found = wanted(spec(conda=ours), Ingested(conda=theirs)).conda
    assert found is not None
    assert found.specs == ("numpy", "scipy")
    assert found.channels == ("mine", "conda-forge")
    assert found.variables == (("A", "b"),)


def test_a_project_alone_needs_packages() -> None:
    payload = ingest({"setup.py": ""})
    found = wanted(spec(), payload)
    assert (found.packages, found.projects) == (True, (".",))


def test_hashes_are_by_name_whatever_follows_it() -> None:
    text = (
        "Foo_Bar[x]==1.0 --hash=sha256:" + "a" * 64 + "\n"
        'foo-bar[x]==1.0; python_version < "3" --hash=sha256:' + "b" * 64 + "\n"
        "six==1.0 --hash=sha256:" + "c" * 64
    )
    found = wanted(spec(), ingest({"requirements.txt": text})).hashes
    assert set(found) == {"foo-bar", "six"}
    assert set(found["foo-bar"]) == {"sha256:" + letter * 64 for letter in "ab"}


def test_r_packages_come_before_the_specs_own_lines() -> None:
    found = wanted(spec(post=("mine",)), ingest({"install.R": ""}))
    assert found.post[-1] == "mine"
    assert any("Rscript" in line for line in found.post[:-1])


@pytest.mark.parametrize(
    ("ours", "theirs", "both"), [("3.11", None, "3.11"), (None, "3.12", "3.12")]
)
def test_either_may_name_the_python(ours, theirs, both) -> None:
    assert wanted(spec(python=ours), Ingested(python=theirs)).python == both


def test_two_pythons_do_not_go_together() -> None:
    with pytest.raises(SpecError) as caught:
        wanted(spec(python="3.11"), Ingested(python="3.12"))
    assert caught.value.code == "python-mismatch"
    assert "3.12" in caught.value.hint
