"""Messages are read as the library reads them, and written as it writes them."""

from __future__ import annotations

import json
import uuid

import pytest
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task, TaskCancel
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
    assert Form(details).fill(str(task_id), data, times) == expected


@pytest.mark.parametrize(
    "data",
    [
        "".join(map(chr, range(0x300))),
        "\u2028\u2029\ufeff\uffff\U0001f600",
        str(uuid.UUID(int=1)) + '"\\',
        message._DATA,
        message._ID,
        *("x" * message.LARGE, "\n" * (message.LARGE + 1), "x" * 1_000_000),
    ],
)
def test_awkward_data(data):
    details = {"endpoint_id": uuid.UUID(int=7), "n": message._START}
    times = Times(1, 2)
    expected = by_library(uuid.UUID(int=5), data, times, details)
    assert Form(details).fill(str(uuid.UUID(int=5)), data, times) == expected


def test_many_results_on_one_form():
    details = {"os": "Linux", "endpoint_id": None, "container": {"cache": "hit"}}
    form = Form(details)
    for n in range(5):
        expected = by_library(uuid.UUID(int=n), f"d{n}", Times(n, n + 1), details)
        assert form.fill(str(uuid.UUID(int=n)), f"d{n}", Times(n, n + 1)) == expected


def test_what_the_library_refuses_is_refused_in_its_words():
    with pytest.raises(Exception, match="surrogates") as ours:
        Form({}).fill(str(uuid.UUID(int=1)), "\ud800", Times(1, 2))
    with pytest.raises(type(ours.value)) as theirs:
        by_library(uuid.UUID(int=1), "\ud800", Times(1, 2), {})
    assert str(ours.value) == str(theirs.value)


ID = "11111111-2222-3333-4444-555555555555"


def read_by_library(packed):
    task = messagepack.unpack(packed)
    assert isinstance(task, Task)
    return task.task_buffer


@given(st.uuids(), texts)
def test_a_task_is_read_as_by_the_library(task_id, buffer):
    packed = messagepack.pack(Task(task_id=task_id, task_buffer=buffer))
    assert message.task_buffer(packed, str(task_id)) == buffer


def written(**data):
    return b"\x01" + json.dumps({"message_type": "task", "data": data}).encode()


@pytest.mark.parametrize("buffer", ["\ud800", "\x00", "\U0001f600", ""])
def test_awkward_buffers(buffer):
    packed = written(task_id=ID, task_buffer=buffer)
    assert message.task_buffer(packed, ID) == buffer == read_by_library(packed)


@pytest.mark.parametrize(
    "packed",
    [
        written(task_id=ID, task_buffer="x", container_id=ID),
        written(task_id=ID, task_buffer="x", surprise=None),
        written(task_id=ID.replace("1", "6"), task_buffer="x"),
        written(task_id=ID.replace("-", ""), task_buffer="x"),
        b'\x01{"message_type":"task","surprise":1,"data":{"task_id":"%s",'
        b'"task_buffer":"x"}}' % ID.encode(),
    ],
)
def test_what_is_unusual_is_left_to_the_library(packed):
    assert message.task_buffer(packed, ID) is None
    assert read_by_library(packed) == "x"


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"\x01", b"\x01garbage", b"\x01[]", b"\x01null", b"\x01\xff"),
        *(b'\x01{"data":{}}', b'\x01{"message_type":"task","data":3}'),
        b"\x01" + b"[" * 100_000,
        b"\x02" + written(task_id=ID, task_buffer="x")[1:],
        *(written(task_id=ID, task_buffer=b) for b in (None, 3, ["x"])),
        messagepack.pack(TaskCancel(task_id=ID)),
    ],
)
def test_what_is_no_task_is_left_to_the_library(packed):
    assert message.task_buffer(packed, ID) is None
    with pytest.raises(Exception):  # noqa: B017  # one of many kinds
        read_by_library(packed)
