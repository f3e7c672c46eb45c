"""What a conda layer is made for: the image, not this machine."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import pytest

from globus_compute_apptainer.build.conda import conda
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.errors import BuildError

IMAGE = Inventory("Debian 12", "debian", "glibc", "2.36", "x86_64", "/bin", True)


def virtual(**variables: str) -> dict[str, str]:
    found = conda._virtual(IMAGE, variables)
    return {name: f"{version}={build}" for name, version, build in found}


def test_virtual_packages_are_those_of_the_image() -> None:
    found = virtual()
    assert found["__glibc"] == "2.36=0"
    assert found["__archspec"] == "1=x86_64"
    assert platform.release().startswith(found["__linux"].partition("=")[0])
    assert "__cuda" not in found


def test_overrides_are_condas_own() -> None:
    found = virtual(CONDA_OVERRIDE_CUDA="12.4", CONDA_OVERRIDE_ARCHSPEC="zen4")
    assert (found["__cuda"], found["__archspec"]) == ("12.4=0", "1=zen4")
    assert "__cuda" not in virtual(CONDA_OVERRIDE_CUDA="")


def test_the_prefix_is_one_that_the_image_does_not_have(make_job: Any) -> None:
    job = make_job()

    def prefix(*ours: str) -> str:
        return conda._target(job, dataclasses.replace(IMAGE, ours=ours)).prefix

    assert prefix() == prefix("env", "layers") == "/.gc-apptainer/conda"
    assert prefix("conda", "conda2") == "/.gc-apptainer/conda3"


@pytest.mark.parametrize(
    "changes", [{"libc": "musl"}, {"libc": ""}, {"machine": "mips"}]
)
def test_images_that_conda_has_nothing_for(
    make_job: Any, changes: dict[str, str]
) -> None:
    with pytest.raises(BuildError) as caught:
        conda._target(make_job(), dataclasses.replace(IMAGE, **changes))
    assert caught.value.code == "no-glibc"
