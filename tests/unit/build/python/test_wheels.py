"""Layers of wheels are shared among bases, where they would be the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from globus_compute_apptainer.build.python.uv import HostUv
from globus_compute_apptainer.build.python.wheels import Wheels
from unit.build.python.pythons import PYTHON


def test_a_base_that_hides_its_packages_shares_no_layer(make_job, tmp_path: Path):
    """Its Python says that it is in an environment, which has no packages."""
    host = HostUv(make_job(), tmp_path, tmp_path)
    strange = replace(PYTHON, prefix="/nowhere")
    plain, hidden = (Wheels(host, p, "x").made_of() for p in (PYTHON, strange))
    assert plain != hidden
