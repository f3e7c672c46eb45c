"""The form for results gives the bytes that the library gives."""

from __future__ import annotations

import uuid

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.worker import message
from globus_compute_apptainer.worker.message import Form, Times, transitions

texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)
moments = st.integers(0, 2**63 - 1)


def by_library(task_id, data, times, details) -> bytes:
    return messagepack.pack(
        Result(
            task_id=task_id,
            data=data,
            details=details,
            task_statuses=transitions(times),
        )
    )


@given(st.uuids(), texts, moments, moments, st.dictionaries(texts, plain, max_size=4))
def test_same_bytes(task_id, data, start, end, details):
    times = Times(start, end)
    expected = by_library(task_id, data, times, details)
    assert Form(details).fill(task_id, data, times) == expected


@pytest.mark.parametrize(
    "data",
    [
        "".join(map(chr, range(0x300))),
        "\u2028\u2029\ufeff\uffff\U0001f600",
        str(uuid.UUID(int=1)) + '"\\',
        message._DATA,
        str(message._ID),
        "x" * 1_000_000,
    ],
)
def test_awkward_data(data):
    details = {"endpoint_id": uuid.UUID(int=7), "n": message._START}
    times = Times(1, 2)
    expected = by_library(uuid.UUID(int=5), data, times, details)
    assert Form(details).fill(uuid.UUID(int=5), data, times) == expected


def test_many_results_on_one_form():
    form = message.form((("os", "Linux"), ("endpoint_id", None)), '{"cache": "hit"}')
    for n in range(5):
        details = {"os": "Linux", "endpoint_id": None, "container": {"cache": "hit"}}
        expected = by_library(uuid.UUID(int=n), f"d{n}", Times(n, n + 1), details)
        assert form.fill(uuid.UUID(int=n), f"d{n}", Times(n, n + 1)) == expected


def test_what_the_library_refuses_is_refused_in_its_words():
    with pytest.raises(Exception, match="surrogates") as ours:
        Form({}).fill(uuid.UUID(int=1), "\ud800", Times(1, 2))
    with pytest.raises(type(ours.value)) as theirs:
        by_library(uuid.UUID(int=1), "\ud800", Times(1, 2), {})
    assert str(ours.value) == str(theirs.value)
