"""Spec to recipe: what may and may not get into a definition file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from globus_compute_apptainer.build.plan import DEFINITION, KIT, plan
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.model import ImageSpec

GOLDEN = Path(__file__).resolve().parents[2] / "golden/build"
DIGEST = "sha256:" + "a" * 64
CASES = {
    "docker": ("docker", "python:3.11-slim"),
    "docker-digest": ("docker", f"ghcr.io/org/image@{DIGEST}"),
    "docker-port": ("docker", "127.0.0.1:5000/a/b:tag"),
    "oras": ("oras", "registry.example.org/gc/base:1"),
    "library": ("library", "user/collection/image:1.0"),
    "localimage": ("localimage", "/images/base.sif"),
    "docker-archive": ("docker-archive", "/images/base.tar"),
    "oci-archive": ("oci-archive", "/images/base.tar"),
    "oci": ("oci", "/images/layout"),
}
texts = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize("name", CASES)
def test_golden_definitions(name: str):
    agent, base = CASES[name]
    assert (
        plan(ImageSpec(base, agent)).definition == (GOLDEN / f"{name}.def").read_text()
    )


def test_every_golden_definition_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.def")} == set(CASES)


def test_golden_recipe():
    recipe = plan(
        ImageSpec(
            "python:3.11-slim",
            "docker",
            python="3.11",
            pip=("numpy>=1.26", "pandas"),
            apt=("git", "tree=2.1.0-1"),
            post=("echo 'it''s'", "touch /done"),
        )
    )
    assert dict(recipe.files) == {
        "requirements.txt": "numpy>=1.26\npandas\n",
        "apt.txt": "git\ntree=2.1.0-1\n",
        "post.sh": "echo 'it''s'\ntouch /done\n",
        "python.txt": "3.11\n",
    }
    assert recipe.stages == ("pull", "apt", "pip", "post", "pack", "probe")
    assert recipe.definition == (GOLDEN / "docker.def").read_text()


def test_stages_are_those_that_will_be_entered():
    recipe = plan(ImageSpec("x", "docker", pip=("a",)))
    assert recipe.stages == ("pull", "pip", "pack", "probe")
    assert plan(ImageSpec("x", "docker")).files == {}


@given(
    st.lists(texts, max_size=4),
    st.lists(texts, max_size=4),
    st.lists(texts, max_size=4),
)
def test_only_the_base_is_ever_in_the_definition(pip, apt, post):
    assume(not any("\x7f" in text for text in [*pip, *apt, *post]))
    bare = plan(ImageSpec("x:1", "docker"))
    full = plan(ImageSpec("x:1", "docker", None, tuple(pip), tuple(apt), tuple(post)))
    assert full.definition == bare.definition
    assert full.files.get("post.sh", "") == "".join(f"{line}\n" for line in post)


@given(st.sampled_from([*CASES.values()]).map(lambda case: case[0]), st.text())
def test_a_base_can_add_nothing_but_itself(agent: str, base: str):
    try:
        text = plan(ImageSpec(base, agent)).definition
    except SpecError:
        return
    assert text.splitlines()[2:] == DEFINITION.replace("{kit}", KIT).splitlines()[2:]
    assert text.splitlines()[:2] == [f"Bootstrap: {agent}", f"From: {base}"]
    assert not re.search(r"\{\{|[#\\\s]", base)


@pytest.mark.parametrize("agent", ["docker", "localimage"])
@pytest.mark.parametrize(
    "base",
    [
        *(
            "",
            "/",
            "x\n%post\n  touch /x",
            "/x\n%post",
            "x y",
            "/x{{y}}",
            "/x#y",
            "/x\\",
        ),
        *("-x", "x\0", "/x\r", "/x\t", "/x\x85\x00", "$(id)", "/$HOME"),
    ],
)
def test_bad_bases_are_refused(agent: str, base: str):
    with pytest.raises(SpecError) as caught:
        plan(ImageSpec(base, agent))
    assert caught.value.field == "base_image"


@pytest.mark.parametrize("agent", ["", "docker\n", "scratch", "yum", "docker-daemon"])
def test_other_agents_are_refused(agent: str):
    with pytest.raises(SpecError):
        plan(ImageSpec("x", agent))


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec("x", "docker", pip=("a\nb",)),
        ImageSpec("x", "docker", apt=("a\n-y",)),
        ImageSpec("x", "docker", apt=("a\x00",)),
        ImageSpec("x", "docker", post=("a\x00",)),
        ImageSpec("x", "docker", python="3.11\n"),
    ],
)
def test_data_cannot_add_lines(spec: ImageSpec):
    with pytest.raises(SpecError):
        plan(spec)


def test_post_keeps_its_own_lines():
    recipe = plan(ImageSpec("x", "docker", post=("if true\nthen\n\techo\nfi",)))
    assert recipe.files["post.sh"] == "if true\nthen\n\techo\nfi\n"
