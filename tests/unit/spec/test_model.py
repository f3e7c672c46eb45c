"""ContainerSpec, ImageSpec, RunSpec: what parse makes of a spec, and its identity."""

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.conda import Conda
from globus_compute_apptainer.spec.model import ContainerSpec, ImageSpec, RunSpec, parse

BASE = "docker://python:{python}-slim"


def image(raw, default_base=BASE, python="3.11"):
    return parse(raw).image_spec(default_base=default_base, python=python)


def refused(raw):
    with pytest.raises(SpecError) as caught:
        parse(raw)
    return caught.value


def test_every_field():
    spec = parse(
        {
            "base_image": "docker://ghcr.io/o/i:1",
            "base_image_type": "docker",
            "python": "3.12",
            "pip": "Pandas>=2  # why\nnumpy",
            "apt": ["git", "curl"],
            "post": ["b", "a"],
            "env": {"B": "2", "A": "1"},
            "gpu": "nvidia",
            "binds": ["/scratch:/s:ro"],
            "name": "ml",
            "description": "for\nall",
            "labels": {"project": "x"},
        }
    )
    run = RunSpec("nvidia", ("/scratch:/s:ro",), (("A", "1"), ("B", "2")))
    assert spec == ContainerSpec(
        base_image="ghcr.io/o/i:1",
        agent="docker",
        python="3.12",
        pip=("numpy", "pandas>=2"),
        apt=("curl", "git"),
        post=("b", "a"),
        run_spec=run,
        name="ml",
        description="for\nall",
        labels=(("project", "x"),),
    )
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))


def test_a_spec_of_the_earlier_systems():
    spec = parse(
        {
            "name": None,
            "image_file_name": "my.sif",
            "base_image_type": "docker",
            "base_image": "python:3.11",
            "pip_packages": ["numpy"],
            "apt_packages": None,
            "conda_packages": [],
            "conda": None,
            "python_version": "3.11",
            "payload_url": None,
            "container_id": "3f1c",
            "container_type": "singularity",
        }
    )
    assert (spec.name, spec.pip, spec.python) == ("my.sif", ("numpy",), "3.11")
    assert [note.split()[0] for note in spec.notes] == [
        "container_id",
        "container_type",
    ]


def test_errors_name_the_field_as_the_user_wrote_it():
    assert refused({"pip_packages": ["a", "-e ."]}).field == "pip_packages[1]"
    assert refused({"pip": "a\n\n-e ."}).field == "pip[line 3]"
    assert refused({"apt": ["git", "--yes"]}).field == "apt[1]"
    assert refused({"base_image": 3}).field == "base_image"
    assert refused({"base_image": " "}).field == "base_image"
    assert refused({"base_image": "x", "base_image_type": "zip"}).field == (
        "base_image_type"
    )


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"name": "x", "description": "y", "labels": {"a": "b"}},
        {"container_id": "x"},
        {"pip": [], "apt": "", "post": [], "env": {}, "binds": []},
        {"pip": "# only a comment", "conda": []},
        {"python": None},
    ],
)
def test_a_spec_that_asks_for_nothing(raw):
    assert refused(raw).code == "spec-empty"


@pytest.mark.parametrize(
    "raw",
    [{"env": {"A": "1"}}, {"gpu": "rocm"}, {"binds": ["/a"]}, {"python": "3.11"}],
)
def test_a_spec_may_take_the_default_base_as_it_is(raw):
    assert image(raw) == ImageSpec("python:3.11-slim", "docker", "3.11")


def test_the_type_needs_an_image():
    assert refused({"base_image_type": "docker", "pip": ["a"]}).field == (
        "base_image_type"
    )


@pytest.mark.parametrize("kind", ["yum", "zypper"])
def test_agents_that_are_not_supported(kind):
    error = refused({"base_image_type": kind, "base_image": "x"})
    assert (error.code, error.field) == ("spec-unsupported", "base_image_type")


class TestDefaultBase:
    """How a spec without a base image gets one."""

    def test_it_follows_the_python_of_the_spec(self):
        made = image({"python": "3.13"})
        assert (made.base_image, made.python) == ("python:3.13-slim", "3.13")

    def test_it_follows_the_python_of_the_endpoint(self):
        made = image({"pip": ["a"]}, python="3.9")
        assert (made.base_image, made.python) == ("python:3.9-slim", "3.9")

    def test_a_fixed_one_demands_only_what_the_spec_does(self):
        assert image({"pip": ["a"]}, "ubuntu:22.04", "nonsense").python is None
        assert image({"python": "3.10"}, "ubuntu:22.04").python == "3.10"

    def test_a_named_base_ignores_it(self):
        made = image({"base_image": "x"}, "not valid", "nonsense")
        assert made == ImageSpec("x:latest", "docker")

    def test_it_names_the_same_image_as_if_written(self):
        written = {"base_image": "docker://python:3.12-slim", "python": "3.12"}
        assert image({"python": "3.12"}).digest == image(written).digest

    @pytest.mark.parametrize(
        ("template", "python", "field"),
        [
            ("not valid", "3.11", "default_base"),
            ("", "3.11", "default_base"),
            (BASE, "3.11.2", "python"),
            (BASE, "x", "python"),
        ],
    )
    def test_a_wrong_one_is_an_error_that_says_so(self, template, python, field):
        with pytest.raises(SpecError) as caught:
            image({"pip": ["a"]}, template, python)
        assert caught.value.field == field


class TestIdentity:
    """The digest: of the canonical bytes, of what makes the image, of nothing else."""

    def test_the_digest_is_that_of_the_canonical_bytes(self):
        made = image({"pip": ["b", "a"], "post": ["x"]})
        assert json.loads(made.canonical()) == {
            "format": 1,
            "agent": "docker",
            "base_image": "python:3.11-slim",
            "python": "3.11",
            "pip": ["a", "b"],
            "post": ["x"],
        }
        expected = hashlib.sha256(made.canonical()).hexdigest()
        assert made.digest == made.digest == f"sha256:{expected}"

    def test_canonical_bytes_are_ascii(self):
        assert image({"post": ["echo é"]}).canonical().isascii()

    def test_post_keeps_its_order(self):
        assert image({"post": ["a", "b"]}).digest != image({"post": ["b", "a"]}).digest

    def test_each_field_of_an_image_counts(self):
        fields = {f.name for f in dataclasses.fields(ImageSpec)}
        one = ImageSpec("b", "docker", "3.11", ("p",), ("a",), ("x",))
        others = {"conda": Conda(("z",))} | dict.fromkeys(
            ("pip", "apt", "post"), ("z",)
        )
        changed = [
            dataclasses.replace(one, **{f: others.get(f, "z")}) for f in sorted(fields)
        ]
        assert len({spec.digest for spec in [one, *changed]}) == len(fields) + 1

    def test_it_is_the_same_in_every_process(self):
        """Neither hash seeds nor the locale enter."""
        code = (
            "from globus_compute_apptainer.spec.model import parse;"
            "s = parse({'pip': 'c[z,y,x]<2,>1\\nb\\na', 'apt': 'git curl'});"
            f"print(s.image_spec(default_base={BASE!r}, python='3.11').digest)"
        )
        seen = set()
        for seed in ("0", "1", "2"):
            env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
            argv = [sys.executable, "-c", code]
            done = subprocess.run(argv, env=env, capture_output=True, check=True)
            seen.add(done.stdout)
        assert len(seen) == 1


def test_importing_the_model_does_not_import_packaging():
    """Clients may lack it, and starts that need no spec should not pay for it."""
    code = (
        "import sys, globus_compute_apptainer.spec.policy\n"
        "sys.exit('packaging' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
