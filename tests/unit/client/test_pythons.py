"""Minor versions from ``requires-python``."""

from __future__ import annotations

import pytest

from globus_compute_apptainer.client import pythons
from globus_compute_apptainer.errors import SpecError


@pytest.mark.parametrize(
    ("requires", "minor"),
    [
        ("", "3.11"),
        (">=3.9", "3.11"),
        (">=3.11.4", "3.11"),
        ("==3.11.*", "3.11"),
        (">=3.12,<3.13", "3.12"),
        (">=3.12", "3.12"),
        ("<3.10", "3.8"),
        ("~=3.13.2", "3.13"),
        (">3.11", "3.11"),
        ("!=3.11.*,>=3.10", "3.10"),
    ],
)
def test_this_one_or_the_lowest(monkeypatch, requires: str, minor: str) -> None:
    monkeypatch.setattr(pythons, "running", lambda: "3.11")
    assert pythons.chosen(requires, "it") == minor


def test_no_version_will_do() -> None:
    with pytest.raises(SpecError) as caught:
        pythons.chosen(">=4", "work.py")
    assert "work.py needs Python >=4" in caught.value.message
