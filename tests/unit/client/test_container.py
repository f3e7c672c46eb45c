"""The client's helper: the endpoint's own checks, before anything is sent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from globus_compute_apptainer.client import container
from globus_compute_apptainer.errors import SpecError


def test_a_good_spec_is_attached_as_written() -> None:
    fields = {"base_image": "python:3.11-slim", "pip": ["Pandas >= 2"], "gpu": None}
    assert container(**fields) == {"container": fields}


def test_a_bad_spec_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SpecError) as caught:
        container(base_imag="python:3.11-slim")
    assert caught.value.nearest == "base_image"


def test_neither_the_endpoint_nor_parsl_is_needed() -> None:
    code = """
import sys
for name in ("parsl", "globus_compute_endpoint", "uv", "yaml", "rich"):
    sys.modules[name] = None
from globus_compute_apptainer.client import container
print(container(pip=["pandas"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "{'container': {'pip': ['pandas']}}", done.stderr
