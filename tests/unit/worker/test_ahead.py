"""What the zygote imports is read before; whoever reads it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from globus_compute_apptainer.worker import inside
from globus_compute_apptainer.worker.inside import ahead
from globus_compute_apptainer.worker.launch import _folder_of

STDLIB = sysconfig.get_path("stdlib")
IMPORTED = f"""
import sys
sys.path[0] = {str(Path(inside.__file__).parent.parent)!r}
before = set(sys.modules)
from inside import service
service.import_all({str(_folder_of("dill").parent)!r}, "0")
for name, module in list(sys.modules.items()):
    if name not in before and getattr(module, "__file__", None):
        print(module.__file__)
"""


def test_what_is_read_is_what_is_imported():
    said = subprocess.run(
        [sys.executable, "-s", "-c", IMPORTED],
        capture_output=True,
        text=True,
        check=True,
    )
    files = {file for file in said.stdout.split() if Path(file).parent.is_dir()}
    ours = {
        file
        for file in files
        if file.startswith(f"{STDLIB}/")
        and "-packages/" not in file
        and file.endswith(".py")
        and "/importlib/_bootstrap" not in file  # frozen in every Python
    }
    assert len(ours) > 40
    lacking = ours - {source for source, _ in ahead.files()}
    # Others in other versions of Python.
    assert len(lacking) <= (0 if sys.version_info[:2] == (3, 11) else len(ours) / 5)


def test_it_reads_the_bytecode_that_is_there():
    there = [compiled for _, compiled in ahead.files() if Path(compiled).exists()]
    assert len(there) > 40


def test_nothing_is_left_of_the_process():
    child = ahead.begin()
    assert child is not None
    ahead.end(child)
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_no_process_to_be_had_is_no_failure(monkeypatch):
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    ahead.end(ahead.begin())
