"""Archives of every kind, good and hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.build.payload import archive, contents
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError

FILES = {"top/a.txt": b"a", "top/sub/run.sh": b"#!/bin/sh\n", "top/b.txt": b"b" * 1000}


def tar_of(*entries, **options):
    """``(name, bytes | type, changes of TarInfo)``"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as made:
        for name, what, changes in entries:
            info = tarfile.TarInfo(name)
            info.mtime = 1_000_000_000
            if isinstance(what, bytes) and len(what) != 1:
                info.size = len(what)
            else:
                info.type = what
            for key, value in changes.items():
                setattr(info, key, value)
            data = io.BytesIO(what) if info.isreg() and info.size else None
            made.addfile(info, data)
    return buffer.getvalue()


def good_tar(**options):
    entries = [
        (name, data.ljust(2, b"\n"), {"mode": 0o755 if name.endswith(".sh") else 0o640})
        for name, data in FILES.items()
    ]
    return tar_of(*entries, **options)


def good_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in FILES.items():
            info = zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40))
            mode = 0o755 if name.endswith(".sh") else 0o640
            info.external_attr = (stat.S_IFREG | mode) << 16
            made.writestr(info, data.ljust(2, b"\n"))
    return buffer.getvalue()


def zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.fixture
def unpacked(make_job, tmp_path):
    """``unpacked(bytes)`` is the directory that came of them."""
    count = iter(range(10_000))

    def unpack(data, **config):
        place = tmp_path / str(next(count))
        place.mkdir()
        (place / "archive").write_bytes(data)
        (place / "root").mkdir()
        job = make_job(config=BuildConfig(timeout=60.0, **config))
        job.enter("payload")
        archive.unpack(job, place / "archive", place / "root")
        return place / "root"

    return unpack


@pytest.fixture
def refused(unpacked, tmp_path):
    def check(data, code="payload-invalid", **config):
        with pytest.raises(BuildError) as caught:
            unpacked(data, **config)
        assert (caught.value.code, caught.value.stage) == (code, "payload")
        assert caught.value.hint
        # Nothing but what these tests made themselves lies outside of the root.
        for place in tmp_path.iterdir():
            assert not place.name.isdigit() or sorted(os.listdir(place)) in (
                ["archive", "root"],
            )
        return caught.value.message

    return check


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstd],
    ids=["plain", "gz", "bz2", "xz", "zst"],
)
def test_tar_archives_are_unpacked(unpacked, pack):
    root = unpacked(pack(good_tar()))
    assert {p.name for p in root.rglob("*")} == {"a.txt", "sub", "run.sh", "b.txt"}
    assert (root / "b.txt").read_bytes() == FILES["top/b.txt"]
    assert (root / "b.txt").stat().st_mtime == 1_000_000_000


def test_a_zip_archive_is_the_same_tree(unpacked, make_job):
    job = make_job()
    one, other = unpacked(good_zip()), unpacked(good_tar())
    assert contents.digest(one, job) == contents.digest(other, job)
    assert (one / "a.txt").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_every_tar_format(unpacked, form):
    long = "top/" + "/".join(["d" * 40] * 2) + "/ä.txt"
    root = unpacked(tar_of((long, b"xx", {}), ("top/z", b"zz", {}), format=form))
    assert (root / long.removeprefix("top/")).read_bytes() == b"xx"


def test_several_compressed_streams_in_a_row_are_one(unpacked):
    data = good_tar()
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        assert (unpacked(pack(data[:700]) + pack(data[700:])) / "a.txt").exists()


def test_only_the_executable_bit_of_modes_counts(unpacked):
    root = unpacked(
        tar_of(
            ("t/a", b"xx", {"mode": 0o6755, "uid": 12, "gid": 13}),
            ("t/b", b"xx", {"mode": 0o000}),
            ("t/d", tarfile.DIRTYPE, {"mode": 0o000}),
            ("t/d/c", b"xx", {"mode": 0o777}),
        )
    )
    modes = {
        p.name: stat.S_IMODE(p.stat().st_mode) for p in root.iterdir() if p.is_file()
    }
    assert modes == {"a": 0o755, "b": 0o644}
    assert (root / "d/c").read_bytes() == b"xx"


def test_a_single_directory_is_left_out_but_not_a_package_or_binder(unpacked):
    assert (unpacked(tar_of(("top/x", b"xx", {}), ("top/y", b"xx", {}))) / "x").exists()
    package = tar_of(("pkg/__init__.py", b"xx", {}), ("pkg/m.py", b"xx", {}))
    assert (unpacked(package) / "pkg/m.py").exists()
    assert (
        unpacked(tar_of(("binder/apt.txt", b"git", {}))) / "binder/apt.txt"
    ).exists()
    two = tar_of(("a/x", b"xx", {}), ("b/x", b"xx", {}))
    assert (unpacked(two) / "a/x").exists()
    assert (unpacked(tar_of(("x", b"xx", {}))) / "x").is_file()


def test_what_a_mac_adds_is_left_out(unpacked):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("p/x", "x")
        made.writestr("__MACOSX/p/._x", "x")
    assert [p.name for p in unpacked(buffer.getvalue()).iterdir()] == ["x"]


def test_links_inside_the_tree_are_kept(unpacked):
    root = unpacked(
        tar_of(
            ("t/link", tarfile.SYMTYPE, {"linkname": "d/x"}),
            ("t/d/x", b"xx", {}),
            ("t/d/up", tarfile.SYMTYPE, {"linkname": "../d"}),
            ("t/hard", tarfile.LNKTYPE, {"linkname": "t/d/x"}),
            ("t/dangling", tarfile.SYMTYPE, {"linkname": "nowhere"}),
        )
    )
    assert (root / "link").read_bytes() == (root / "hard").read_bytes() == b"xx"
    assert (root / "dangling").is_symlink()


def test_the_later_of_two_files_of_one_name_counts(unpacked):
    assert (
        unpacked(tar_of(("x", b"11", {}), ("x", b"22", {}))) / "x"
    ).read_bytes() == b"22"


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "entries",
    {
        "up": [("../x", b"xx", {})],
        "up inside": [("a/../../x", b"xx", {})],
        "absolute": [("/tmp/x", b"xx", {})],
        "link up": [("a", SYM, {"linkname": "../x"})],
        "link up twice": [("d/a", SYM, {"linkname": "../../x"})],
        "absolute link": [("a", SYM, {"linkname": "/etc/passwd"})],
        "empty link": [("a", SYM, {"linkname": ""})],
        "through a link": [("a", SYM, {"linkname": "/tmp"}), ("a/x", b"xx", {})],
        "through a link inside": [
            ("d/y", b"xx", {}),
            ("a", SYM, {"linkname": "d"}),
            ("a/x", b"xx", {}),
        ],
        "links that lead out together": [
            ("d/e/up", SYM, {"linkname": "../.."}),
            ("out", SYM, {"linkname": "d/e/up/.."}),
        ],
        "hard link up": [("a", HARD, {"linkname": "../../archive"})],
        "hard link absolute": [("a", HARD, {"linkname": "/etc/passwd"})],
        "hard link to a link": [
            ("a", SYM, {"linkname": "/etc/passwd"}),
            ("b", HARD, {"linkname": "a"}),
        ],
        "hard link to what comes later": [
            ("b", HARD, {"linkname": "a"}),
            ("a", b"xx", {}),
        ],
        "device": [("null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3})],
        "block device": [("sda", tarfile.BLKTYPE, {"devmajor": 8})],
        "fifo": [("pipe", tarfile.FIFOTYPE, {})],
        "file over a directory": [("a/x", b"xx", {}), ("a", b"xx", {})],
        "below a file": [("a", b"xx", {}), ("a/x", b"xx", {})],
        "nameless": [(".", b"xx", {})],
        "long name": [("n" * 300, b"xx", {})],
    }.items(),
    ids=lambda item: item[0].replace(" ", "-"),
)
def test_hostile_tar_archives_are_refused(refused, entries):
    refused(tar_of(*entries[1]))
    refused(gzip.compress(tar_of(*entries[1])))


@pytest.mark.parametrize(
    "name, mode",
    [
        ("../x", 0),
        ("/x", 0),
        ("a/../../x", 0),
        ("null", stat.S_IFCHR),
        ("link", stat.S_IFLNK),
    ],
)
def test_hostile_zip_archives_are_refused(refused, name, mode):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = (mode | 0o644) << 16
        made.writestr(info, "/etc/passwd")
    refused(buffer.getvalue())


def test_an_encrypted_zip_says_so(refused):
    data = bytearray(good_zip())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] |= 1
    assert "encrypted" in refused(bytes(data))


@pytest.mark.parametrize(
    "data, word",
    [
        (b"", "not an archive"),
        (b"hello", "not an archive"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (gzip.compress(b"no tar in here"), "damaged"),
        (good_tar()[:600], "early"),
        (gzip.compress(good_tar())[:-20], "damaged"),
        (lzma.compress(good_tar())[:-20], "early"),
        (good_zip()[:-30], "damaged"),
        (b"PK\x03\x04" + b"\0" * 50, "damaged"),
    ],
)
def test_what_is_no_archive_or_half_of_one(refused, data, word):
    assert word in refused(data)


def test_ten_gigabytes_of_nothing_are_too_large(refused):
    """A real bomb: gzip in gzip's worst case, 10 MB that become 10 GB."""
    info = tarfile.TarInfo("zeros")
    info.size = 10 * 1024**3
    block = gzip.compress(b"\0" * 64 * 1024**2)
    data = gzip.compress(info.tobuf()) + block * 160
    assert len(data) < 11_000_000
    refused(data, "payload-too-large", max_payload_size=2_000_000_000)


def test_a_bomb_that_lies_about_its_size(refused):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", b"\0" * 30_000_000)
    data = buffer.getvalue().replace(
        struct.pack("<I", 30_000_000), struct.pack("<I", 5)
    )
    refused(data, "payload-invalid", max_payload_size=1_000_000)
    refused(buffer.getvalue(), "payload-too-large", max_payload_size=1_000_000)


def test_a_sparse_file_counts_in_full(refused, tmp_path):
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(10 * 1024**3)
        file.write(b"end")
    os.system(f"tar -C {tmp_path} --sparse -cf {tmp_path}/sparse.tar sparse")
    sparse.unlink()
    data = (tmp_path / "sparse.tar").read_bytes()
    assert len(data) < 100_000
    refused(data, "payload-too-large")


def test_too_many_files(refused, monkeypatch):
    monkeypatch.setattr(contents.Limits.__init__, "__defaults__", (50,))
    entries = [(f"t/{n}", b"xx", {}) for n in range(60)]
    assert "50 files" in refused(tar_of(*entries), "payload-too-large")


def test_hard_links_count_as_the_files_that_they_are(refused):
    first = ("t/0", b"x" * 1_000_000, {})
    links = [(f"t/l{n}", HARD, {"linkname": "t/0"}) for n in range(40)]
    refused(tar_of(first, *links), "payload-too-large", max_payload_size=2_000_000)


def test_a_header_without_end_takes_no_memory(refused):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 * 1024**3
    data = info.tobuf(format=tarfile.GNU_FORMAT) + b"0" * 5000
    assert "header" in refused(data)


def test_a_dictionary_without_end_takes_no_memory(refused):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1024**3}]
    # Only the header says how large it is; packing needs as much, so it is patched in.
    small = lzma.compress(good_tar(), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    del filters
    head = bytearray(small)
    size = (head[12] + 1) * 4
    at = head.index(b"\x21\x01", 12, 12 + size) + 2
    head[at] = 36  # 1 GiB
    import zlib

    head[12 + size - 4 : 12 + size] = struct.pack(
        "<I", zlib.crc32(head[12 : 12 + size - 4])
    )
    refused(bytes(head))


def test_a_build_that_is_cancelled_stops_unpacking(make_job, tmp_path):
    (tmp_path / "archive").write_bytes(good_tar())
    (tmp_path / "root").mkdir()
    job = make_job()
    job.cancel.set()
    with pytest.raises(BuildError) as caught:
        archive.unpack(job, tmp_path / "archive", tmp_path / "root")
    assert caught.value.code == "build-cancelled"


def test_a_full_disk_is_no_fault_of_the_archive(unpacked, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contents, "set_time", full)
    with pytest.raises(OSError, match="No space"):
        unpacked(good_tar())


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_archives_never_raise_anything_else(unpacked, data):
    whole = bytearray(
        data.draw(st.sampled_from([good_zip(), good_tar(), gzip.compress(good_tar())]))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    try:
        unpacked(bytes(whole))
    except BuildError as error:
        assert error.code in ("payload-invalid", "payload-too-large")
