import contextlib
import os
import threading

import pytest

from globus_compute_apptainer.worker.inside.frames import read_frame, write_frame


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 65536, (1 << 20) - 1, 1 << 20, 5_000_000])
def test_what_is_written_can_be_read(pipe, size):
    read_end, write_end = pipe
    header, body = {"kind": "x", "text": "ü\udc80\n"}, os.urandom(size)
    writer = threading.Thread(target=write_frame, args=(write_end, header, body))
    writer.start()
    assert read_frame(lambda n: os.read(read_end, n)) == (header, body)
    writer.join()


def test_frames_follow_one_another(pipe):
    read_end, write_end = pipe
    for n in range(3):
        write_frame(write_end, {"n": n}, b"x" * n)
    os.close(write_end)
    frames = [read_frame(lambda n: os.read(read_end, n)) for _ in range(4)]
    assert frames == [({"n": 0}, b""), ({"n": 1}, b"x"), ({"n": 2}, b"xx"), None]


def test_reads_may_be_short(pipe):
    read_end, write_end = pipe
    write_frame(write_end, {"a": 1}, b"body")
    assert read_frame(lambda n: os.read(read_end, 1)) == ({"a": 1}, b"body")


@pytest.mark.parametrize("cut", [1, 11, 12, 15, 20])
def test_end_inside_a_frame(pipe, cut):
    read_end, write_end = pipe
    write_frame(write_end, {"a": 1}, b"body")
    whole = os.read(read_end, 1000)
    assert len(whole) > cut
    os.write(write_end, whole[:cut])
    os.close(write_end)
    with pytest.raises(EOFError):
        read_frame(lambda n: os.read(read_end, n))


def test_nobody_reads(pipe):
    read_end, write_end = pipe
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        write_frame(write_end, {}, b"")
