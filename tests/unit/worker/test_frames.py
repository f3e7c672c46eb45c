import contextlib
import functools
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.worker.inside.frames import (
    Frame,
    Reader,
    packed,
    write_frame,
)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def reader(fd):
    return Reader(functools.partial(os.read, fd))


@pytest.mark.parametrize("size", [0, 1, 65536, (1 << 20) - 1, 1 << 20, 5_000_000])
def test_what_is_written_can_be_read(pipe, size):
    read_end, write_end = pipe
    header, body = {"kind": "x", "text": "ü\udc80\n"}, os.urandom(size)
    frame = Frame(1 << 40, packed(header), body)
    writer = threading.Thread(target=write_frame, args=(write_end, frame))
    writer.start()
    found = reader(read_end).frame()
    writer.join()
    assert found == frame
    assert found.header == header


def test_frames_follow_one_another(pipe):
    read_end, write_end = pipe
    written = [Frame(n, packed({"n": n}), b"x" * n) for n in range(3)]
    for frame in written:
        write_frame(write_end, frame)
    os.close(write_end)
    source = reader(read_end)
    assert [source.frame() for _ in range(4)] == [*written, None]


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(), st.binary())),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_reads_may_be_of_any_size(frames, sizes):
    written = [Frame(*frame) for frame in frames]
    read_end, write_end = os.pipe()
    for frame in written:
        write_frame(write_end, frame)
    os.close(write_end)
    turns = iter(sizes * 10_000)
    source = Reader(lambda size: os.read(read_end, min(size, next(turns))))
    assert [source.frame() for _ in range(len(written) + 1)] == [*written, None]
    os.close(read_end)


@pytest.mark.parametrize("cut", [1, 19, 20, 24, 28])
def test_end_inside_a_frame(pipe, cut):
    read_end, write_end = pipe
    write_frame(write_end, Frame(1, packed({"a": 1}), b"body"))
    whole = os.read(read_end, 1000)
    assert len(whole) > cut
    os.write(write_end, whole[:cut])
    os.close(write_end)
    with pytest.raises(EOFError):
        reader(read_end).frame()


@pytest.mark.parametrize("head", [b"", b"{", b"\xff", b"[]", b"null"])
def test_head_that_is_no_json_object(head):
    with pytest.raises(ValueError):
        Frame(1, head).header  # noqa: B018


def test_nobody_reads(pipe):
    read_end, write_end = pipe
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        write_frame(write_end, Frame(1, packed({})))
