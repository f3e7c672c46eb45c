"""The ``containers:`` block: what is accepted, what is refused, and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.config import ContainersConfig, RunConfig
from globus_compute_apptainer.errors import ConfigError

ENV = {"HOME": "/home/u", "SCRATCH": "/scratch/u"}


def parse(raw: object) -> ContainersConfig:
    return ContainersConfig.parse(raw, ENV)


def test_an_absent_block_means_defaults() -> None:
    config = parse(None)
    assert config.cache_dir.is_absolute()
    assert config.default_base == "docker://python:{python}-slim"
    assert config.build.concurrency == 2
    assert config.run.warm_per_worker == 4
    assert config.policy.allow_post is False
    assert config.default_container is None


def test_units_paths_and_nested_blocks_are_read() -> None:
    config = parse(
        {
            "cache_dir": "$SCRATCH/images",
            "build": {"timeout": "30m", "concurrency": 3, "tmp_dir": "${SCRATCH}/t"},
            "run": {
                "warm_per_worker": 1,
                "warm_per_node": 3,
                "warm_memory": "8GB",
                "idle_timeout": "10m",
                "isolation": "task",
                "preload": ["numpy", "scipy.linalg"],
                "stage_to": "$TMPDIR/images",
                "stage_size": "5GB",
                "options": ["--nv"],
            },
            "policy": {"max_image_size": "20GB", "allow_post": True},
            "images": {"ml": {"base_image": "python:3.11", "pip": ["numpy"]}},
            "default_container": "ml",
        }
    )
    assert config.cache_dir == Path("/scratch/u/images")
    assert config.build.timeout == 1800.0
    assert config.build.tmp_dir == Path("/scratch/u/t")
    assert config.build.max_image_size == 20 * 1000**3
    assert config.run == RunConfig(
        warm_per_worker=1,
        warm_per_node=3,
        warm_memory=8 * 1000**3,
        idle_timeout=600.0,
        isolation="task",
        preload=("numpy", "scipy.linalg"),
        stage_to="$TMPDIR/images",
        stage_size=5 * 1000**3,
        options=("--nv",),
    )
    assert config.policy.allow_post is True
    assert config.default_container == "ml"


@pytest.mark.parametrize(
    ("raw", "key", "nearest"),
    [
        ({"cache_dri": "/x"}, "cache_dri", "cache_dir"),
        ({"build": {"concurency": 1}}, "build.concurency", "concurrency"),
        ({"policy": {"allow_pots": True}}, "policy.allow_pots", "allow_post"),
        ({"run": {"sandbox": True}}, "run.sandbox", ""),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(
    raw: object, key: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    assert caught.value.key == key
    assert caught.value.nearest == nearest
    assert "valid keys here" in caught.value.hint


@pytest.mark.parametrize(
    "raw", [{"prestart": True}, {"build": {"on": "worker"}}, {"registry": "x"}]
)
def test_keys_of_later_versions_are_refused_not_ignored(raw: object) -> None:
    with pytest.raises(ConfigError, match="not supported by this version"):
        parse(raw)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ([], "containers"),
        ({"build": []}, "build"),
        ({"build": {"timeout": "soon"}}, "build.timeout"),
        ({"build": {"timeout": 0}}, "build.timeout"),
        ({"build": {"concurrency": True}}, "build.concurrency"),
        ({"build": {"concurrency": 0}}, "build.concurrency"),
        ({"build": {"env": {"A": 1}}}, "build.env"),
        ({"policy": {"allow_post": "yes"}}, "policy.allow_post"),
        ({"policy": {"base_images": "python:*"}}, "policy.base_images"),
        ({"policy": {"max_image_size": "big"}}, "policy.max_image_size"),
        ({"cache_dir": "relative/path"}, "cache_dir"),
        ({"cache_dir": "$NOWHERE/x"}, "cache_dir"),
        ({"cache_dir": "/a:b"}, "cache_dir"),
        ({"cache_dir": "/a,b"}, "cache_dir"),
        ({"build": {"strategy": "thick"}}, "build.strategy"),
        ({"journal": "maybe"}, "journal"),
        ({"journal": []}, "journal"),
        ({"remove_dead_pid_file": "no"}, "remove_dead_pid_file"),
        ({"refresh": "soon"}, "refresh"),
        ({"images": {"ml": {"pipp": []}}}, "images.ml.pipp"),
        ({"default_container": "absent"}, "default_container"),
        ({"default_base": "docker://python:{version}"}, "default_base"),
        ({"run": {"options": ["--unsquash"]}}, "run.options"),
        ({"run": {"options": ["--bind=/etc:/x"]}}, "run.options"),
        ({"run": {"options": ["/bin/sh"]}}, "run.options"),
        ({"run": {"options": ["--mount=type=bind,src=/etc"]}}, "run.options"),
        ({"run": {"options": ["--compat"]}}, "run.options"),
        ({"run": {"options": ["-B/etc:/x"]}}, "run.options"),
        ({"run": {"options": ["-eC"]}}, "run.options"),
        ({"run": {"isolation": "node"}}, "run.isolation"),
        ({"run": {"preload": ["import os"]}}, "run.preload"),
        ({"run": {"preload": "numpy"}}, "run.preload"),
        ({"run": {"stage_to": "relative"}}, "run.stage_to"),
        ({"run": {"stage_size": "0GB"}}, "run.stage_size"),
        ({"run": {"warm_per_node": 0}}, "run.warm_per_node"),
        ({"run": {"warm_memory": "much"}}, "run.warm_memory"),
        ({"policy": {"binds": ["scratch"]}}, "policy.binds"),
        ({"policy": {"local_images": ["$NOWHERE"]}}, "policy.local_images"),
        ({"apptainer": "bin/apptainer"}, "apptainer"),
        ({"build": {"http_registries": ["http://r:5000/"]}}, "build.http_registries"),
        ({"build": {"env": {"A B": "1"}}}, "build.env"),
        ({"build": {"env": {"A": "1\n2"}}}, "build.env"),
    ],
)
def test_wrong_values_name_their_key(raw: object, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    assert caught.value.key == key
    assert isinstance(caught.value, ValueError)


def test_an_image_that_is_misspelt_as_default_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"images": {"pandas": {"pip": ["pandas"]}}, "default_container": "panda"})
    assert caught.value.nearest == "pandas"


def test_paths_of_the_policy_are_expanded_as_others() -> None:
    config = parse(
        {
            "policy": {"binds": ["$SCRATCH", "/data"], "local_images": ["$SCRATCH/i"]},
            "apptainer": "$SCRATCH/bin/apptainer",
        }
    )
    assert config.policy.binds == ("/scratch/u", "/data")
    assert config.policy.local_images == ("/scratch/u/i",)
    assert config.apptainer == "/scratch/u/bin/apptainer"


def test_characters_that_a_template_wrote_in_halves_are_joined() -> None:
    config = parse({"default_container": {"env": {"A": "\ud83d\ude00"}}})
    assert config.default_container.run_spec.env == (("A", "\U0001f600"),)


_yaml = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "cache_dir build run policy images timeout env options x pip".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_yaml)
def test_parsing_is_total(raw: object) -> None:
    """Whatever YAML gives, the answer is a configuration or a ConfigError."""
    try:
        config = parse(raw)
    except ConfigError as error:
        assert error.message
    else:
        assert config.build.timeout > 0


def test_conda_channels_and_mirrors() -> None:
    build = {
        "conda_channels": ["https://conda.anaconda.org/bioconda", "file:///data/c/"],
        "conda_mirrors": {"conda-forge": "https://me:pw@mirror.site/forge/"},
    }
    config = parse({"build": build, "policy": {"conda_channels": ["conda-forge"]}})
    assert config.build.conda_channels == ("bioconda", "file:///data/c")
    mirror = ("conda-forge", "https://me:pw@mirror.site/forge")
    assert config.build.conda_mirrors == (mirror,)
    assert config.policy.conda_channels == ("conda-forge",)
    assert parse(None).build.conda_channels == ("conda-forge",)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        ({"conda_channels": ["a b"]}, "build.conda_channels"),
        ({"conda_channels": ["https://me:pw@h/c"]}, "build.conda_channels"),
        ({"conda_channels": "conda-forge"}, "build.conda_channels"),
        ({"conda_mirrors": {"conda-forge": "mirror.site"}}, "build.conda_mirrors"),
        ({"conda_mirrors": ["x"]}, "build.conda_mirrors"),
    ],
)
def test_conda_channels_that_are_none(build: object, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"build": build})
    assert caught.value.key == key
    assert "pw" not in caught.value.render()
