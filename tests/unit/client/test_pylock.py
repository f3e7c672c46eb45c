"""Any document is read as PEP 751 has it or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.client.locks import environments
from globus_compute_apptainer.client.pylock import from_pylock
from globus_compute_apptainer.errors import SpecError

pytest.importorskip("packaging.pylock")

KEYS = "name version marker wheels sdist archive vcs directory url path hashes sha256"
VALUES = st.recursive(
    st.sampled_from(["a", "1.0", "a-1.0-py3-none-any.whl", "sys_platform == 'linux'"])
    | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(packages=st.lists(VALUES, max_size=2) | VALUES, more=VALUES)
def test_any_document(packages: Any, more: Any) -> None:
    document = {
        "lock-version": "1.0",
        "created-by": "us",
        "packages": packages,
        "extras": more,
    }
    try:
        for pin in from_pylock(document, "pylock.toml", environments("3.11")[0]):
            assert pin.name
    except SpecError:
        pass


def test_a_lock_of_a_later_version_is_refused() -> None:
    document = {"lock-version": "2.0", "created-by": "us", "packages": []}
    with pytest.raises(SpecError, match=r"2\.0"):
        list(from_pylock(document, "pylock.toml", environments("3.11")[0]))
