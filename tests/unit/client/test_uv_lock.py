"""Any document is read as uv's or refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.client.locks import environments
from globus_compute_apptainer.client.uv_lock import from_uv_lock
from globus_compute_apptainer.errors import SpecError

KEYS = "name version source dependencies extra marker registry virtual requirements"
VALUES = st.recursive(
    st.sampled_from(["a", "b", "1", "sys_platform == 'linux'"]) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(packages=VALUES, manifest=VALUES)
def test_any_document(packages: Any, manifest: Any) -> None:
    document = {"version": 1, "package": packages, "manifest": manifest}
    try:
        for pin in from_uv_lock(document, "uv.lock", environments("3.11")[0]):
            assert pin.name
    except SpecError:
        pass
