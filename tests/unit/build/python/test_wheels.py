"""Layers of wheels are shared among bases, where they would be the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from globus_compute_apptainer.build.inventory import Python
from globus_compute_apptainer.build.python.uv import HostUv
from globus_compute_apptainer.build.python.wheels import Wheels

PYTHON = Python(
    executable="/usr/bin/python3",
    version="3.13.5",
    implementation="cpython",
    prefix="/usr",
    base_prefix="/usr",
    base_executable="/usr/bin/python3",
    site_packages=(),
    free_threaded=False,
    packages=(),
)


def test_a_base_that_hides_its_packages_shares_no_layer(make_job, tmp_path: Path):
    """Its Python says that it is in an environment, which has no packages."""
    host = HostUv(make_job(), tmp_path, tmp_path)
    strange = replace(PYTHON, prefix="/nowhere")
    plain, hidden = (Wheels(host, p, "x").made_of() for p in (PYTHON, strange))
    assert plain != hidden
