"""A Python as an inventory tells of it."""

from __future__ import annotations

from globus_compute_apptainer.build.inventory import Python

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
