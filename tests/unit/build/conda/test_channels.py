"""Channels: public names, and the way there from here."""

from __future__ import annotations

from globus_compute_apptainer.build.conda.channels import Channels
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.conda import Conda

FORGE = "https://conda.anaconda.org/conda-forge"
NEAR = "https://me:s3cret@mirror.site/t/tok3n/forge"


def test_a_name_stands_for_what_it_does_with_conda() -> None:
    conda = Conda(("x",), ("bioconda", "https://h.org/c", "defaults"))
    assert Channels.wanted(conda, BuildConfig()).urls == (
        "https://conda.anaconda.org/bioconda",
        "https://h.org/c",
        "https://repo.anaconda.com/pkgs/main",
        "https://repo.anaconda.com/pkgs/r",
    )


def test_the_endpoints_channels_are_for_those_who_name_none() -> None:
    config = BuildConfig(conda_channels=("file:///data/channel",))
    assert Channels.wanted(Conda(("x",)), config).urls == ("file:///data/channel",)
    named = Channels.wanted(Conda(("x",), ("conda-forge",)), config)
    assert named.urls == (FORGE,)


def test_channels_of_match_specs_come_last() -> None:
    conda = Conda(("bioconda/noarch::x", "conda-forge::y", "z"))
    urls = Channels.wanted(conda, BuildConfig()).urls
    assert urls == (FORGE, "https://conda.anaconda.org/bioconda")


def test_mirrors_are_for_the_way_only() -> None:
    config = BuildConfig(conda_mirrors=(("conda-forge", NEAR),))
    channels = Channels.wanted(Conda(("x",)), config)
    assert channels.urls == (FORGE,)
    near = channels.here(f"{FORGE}/noarch/x-1-0.conda")
    assert near == f"{NEAR}/noarch/x-1-0.conda"
    assert channels.public(near) == f"{FORGE}/noarch/x-1-0.conda"
    masked = "https://me:********@mirror.site/t/********/forge"
    assert channels.public(masked) == FORGE
    assert channels.here(FORGE + "-extra/noarch") == FORGE + "-extra/noarch"


def test_match_specs_name_the_mirror_too() -> None:
    config = BuildConfig(conda_mirrors=(("conda-forge", NEAR),))
    channels = Channels.wanted(Conda(("x",)), config)
    assert channels.spec("conda-forge/noarch::x ==1") == f"{NEAR}/noarch::x ==1"
    assert channels.spec("x ==1") == "x ==1"


def test_errors_tell_public_urls() -> None:
    config = BuildConfig(conda_mirrors=(("conda-forge", NEAR),))
    channels = Channels.wanted(Conda(("x",)), config)
    told = channels.told(f"error for url ({NEAR}/noarch) and https://a:b@h/t/k/c")
    assert told.startswith(f"error for url ({FORGE}/noarch)")
    assert not any(secret in told for secret in ("s3cret", "tok3n", "a:b", "/k/"))
