"""Binds: normal form, refusals, prefixes."""

import pytest

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.binds import MAX_BINDS, bind, binds, inside
from globus_compute_apptainer.spec.refusal import Refusal


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        ("/scratch", "/scratch:/scratch:rw"),
        ("/scratch/", "/scratch:/scratch:rw"),
        ("//a/./b//c", "/a/b/c:/a/b/c:rw"),
        ("/a:/b", "/a:/b:rw"),
        ("/a:/b:ro", "/a:/b:ro"),
        ("/:/host:ro", "/:/host:ro"),
        ("/a b:/é", "/a b:/é:rw"),
        ("/proc/x:/x", "/proc/x:/x:rw"),
        ("/device:/device", "/device:/device:rw"),
    ],
)
def test_normal_form(entry, normal):
    assert str(bind(entry)) == normal
    assert str(bind(normal)) == normal


@pytest.mark.parametrize(
    "entry",
    [
        "a",
        "./a",
        "~/a",
        "$SCRATCH",
        "/s/$USER",
        "/a:b",
        "/a:",
        ":/a",
        "/a:/b:rx",
        "/a:/b:",
        "/a:/b:ro:x",
        "/a:/b:ro,rw",
        "/a/../b",
        "/a:/b/..",
        "/a,/etc:/x",
        "/a\n",
        "/a\x00",
        "/a\u2028b",
        '/a"b',
        "/a'b",
        "/a\\b",
        "/a*",
        "/a`id`",
        "/a:/",
        "/a:///",
        "/a:/./",
        "/",
        "/a:/proc",
        "/a:/proc/self",
        "/a:/sys/x",
        "/a:/dev",
        "/a://dev/shm",
        "/a:/.gca",
        "/a:/.gca/x",
        "/a:/.singularity.d/env",
        "/" + "a" * 2000,
    ],
)
def test_refused(entry):
    with pytest.raises(Refusal):
        bind(entry)


def test_outer_targets_come_first_and_repeats_count_once():
    entries = ["/x:/a/b", "/y:/a", "/x:/a/b:rw"]
    assert binds("binds", entries) == ("/y:/a:rw", "/x:/a/b:rw")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("/a", "binds"),
        ({"/a": "/b"}, "binds"),
        (["/a", 3], "binds[1]"),
        (["/a", "b"], "binds[1]"),
        (["/a:/x", "/b:/x"], "binds[1]"),
        (["/a:/x:ro", "/a:/x"], "binds[1]"),
        ([f"/{n}" for n in range(MAX_BINDS + 1)], "binds"),
    ],
)
def test_errors_name_the_entry(value, field):
    with pytest.raises(SpecError) as caught:
        binds("binds", value)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("path", "prefixes", "expected"),
    [
        ("/scratch", ("/scratch",), True),
        ("/scratch/a", ("/scratch/",), True),
        ("/scratch2", ("/scratch",), False),
        ("/", ("/scratch",), False),
        ("/any", ("/",), True),
        ("/", ("/",), True),
        ("/any", ("",), False),
        ("/any", ("any",), False),
        ("/any", (), False),
    ],
)
def test_prefixes_are_compared_part_by_part(path, prefixes, expected):
    assert inside(path, prefixes) is expected
