"""Match specs: conda's grammar, one normal form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.spec.matchspec import (
    channel,
    channel_of,
    match_spec,
    minor_version,
    name_of,
)
from globus_compute_apptainer.spec.refusal import Refusal


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("NumPy", "numpy"),
        ("numpy=1.26", "numpy 1.26.*"),
        ("numpy 1.26.*", "numpy 1.26.*"),
        ("numpy=1.26*", "numpy 1.26.*"),
        ("numpy==1.26.0", "numpy ==1.26.0"),
        ("numpy 1.26.0", "numpy ==1.26.0"),
        ("numpy >= 1.8, < 2", "numpy <2,>=1.8"),
        ("numpy>=1.8,<2,>=1.8", "numpy <2,>=1.8"),
        ("numpy 1.8|2|>=3,<4", "numpy <4,>=3|==1.8|==2"),
        ("numpy>=1|*", "numpy"),
        ("numpy>=1.2.*", "numpy >=1.2"),
        ("numpy!=1.2.*", "numpy !=1.2.*"),
        ("numpy~=1.2.3", "numpy ~=1.2.3"),
        ("numpy=1.26=py_0", "numpy ==1.26 py_0"),
        ("numpy==1.26=py*_0", "numpy ==1.26 py*_0"),
        ("numpy=*=*cuda*", "numpy * *cuda*"),
        ("numpy 1.26 py_0", "numpy ==1.26 py_0"),
        ("numpy[version='>=1,<2', build=\"*cuda*\"]", "numpy <2,>=1 *cuda*"),
        ("numpy 1[version=2]", "numpy ==2"),
        ("numpy[build_number=3]", 'numpy[build_number="==3"]'),
        ("numpy[build_string=x,build_number='>=2']", 'numpy * x[build_number=">=2"]'),
        (f"x[md5={'AB' * 16}]", f'x[md5="{"ab" * 16}"]'),
        ("conda-forge::x=1", "conda-forge::x 1.*"),
        ("x[channel=conda-forge]", "conda-forge::x"),
        ("conda-forge/label/dev::x", "conda-forge/label/dev::x"),
        ("conda-forge/noarch::x", "conda-forge/noarch::x"),
        ("conda-forge::x[subdir=noarch]", "conda-forge/noarch::x"),
        ("x[subdir=noarch]", 'x[subdir="noarch"]'),
        ("https://Mirror.ORG/c/::x", "https://mirror.org/c::x"),
        ("_libgcc_mutex=0.1=main", "_libgcc_mutex ==0.1 main"),
        ("__glibc>=2.17", "__glibc >=2.17"),
        ("tzdata=2024A", "tzdata 2024a.*"),
        ("x=1!2.0+local_1", "x 1!2.0+local_1.*"),
    ],
)
def test_normal_form(written: str, normal: str) -> None:
    assert match_spec(written) == normal
    assert match_spec(normal) == normal


@pytest.mark.parametrize(
    "written",
    [
        "*", "numpy*", "^numpy$", "numpy>=", "numpy=1.2.3.", "numpy=>1", "numpy===1",
        "numpy (>=1|2)", "numpy>=1,,<2", "numpy>=1|", "a b c d", "a,b", "x~=1",
        "./x.conda", "/x", "~/x", "../x", "x-1.0-0.conda", "x.tar.bz2", "e.yml",
        "https://h/x.conda", "git+https://h/x", "file:///c::x", "/c::x", "../c::x",
        "https://a:b@h/c::x", "https://h/t/tok/c::x", "https://h/c?x=1::y",
        "https://h/a/../c::x", "-c conda-forge x", "x --freeze", "--file=x",
        "x[url=https://h/x]", "x[fn=x.conda]", "x[license=MIT]", "x[version]",
        "x[version='1', version='2']", "x[md5=12]", "x[subdir=../..]", "x[build='a b']",
        "x[build=^a$]", "x[channel=/tmp]", "x\ny", "x\ty z w v", "ü", "x\0", "", "[]",
        "x[", "x]", "::x", "a::b::c d e f", "x" * 501, "x[version='1\"2']",
        "x ; python_version<'3'", "$(id)", "`id`", "x=1;id", "x=${HOME}",
    ],
)  # fmt: skip
def test_refused(written: str) -> None:
    with pytest.raises(Refusal):
        match_spec(written)


def test_parts_of_a_normal_form() -> None:
    spec = match_spec("https://h.org/c/noarch::Python=3.10[md5=" + "0" * 32 + "]")
    assert channel_of(spec) == "https://h.org/c"
    assert name_of(spec) == "python"
    assert minor_version(spec) == "3.10"
    assert (channel_of("x ==1"), name_of('x[md5="0"]')) == ("", "x")
    assert channel_of("conda-forge/label/dev::x") == "conda-forge/label/dev"


@pytest.mark.parametrize(
    ("written", "minor"),
    [
        ("python=3.10", "3.10"),
        ("python==3.10.4", "3.10"),
        ("python 3.10.* *_cpython", "3.10"),
        ("python>=3.10,<3.11", "3.10"),
        ("python>=3.10,<3.11.0a0", "3.10"),
        ("python>=3.10,<3.12", ""),
        ("python>=3.10", ""),
        ("python=3.10|=3.11", ""),
        ("python=3", ""),
        ("python", ""),
    ],
)
def test_the_minor_version_that_a_spec_pins(written: str, minor: str) -> None:
    assert minor_version(match_spec(written)) == minor


def test_channels() -> None:
    assert channel("https://conda.anaconda.org/bioconda/") == "bioconda"
    assert channel("HTTPS://H.org:8080/a/b/") == "https://h.org:8080/a/b"
    assert channel("https://repo.prefix.dev/c") == "https://repo.prefix.dev/c"
    for bad in ("", "a b", "a//b", "..", "a/../b", "ftp://h/c", "https://", "c::"):
        with pytest.raises(Refusal):
            channel(bad)


@given(st.text("abAB019 =<>!~|,.*[]'\":/_-+", max_size=40))
def test_what_is_accepted_has_one_normal_form(text: str) -> None:
    try:
        normal = match_spec(text.strip())
    except Refusal:
        return
    assert match_spec(normal) == normal
    assert name_of(normal) == name_of(normal).lower() != ""


@settings(deadline=None)  # the first one imports it
@given(st.text("ab01 =<>!~|,.*[]'\"_", max_size=30))
def test_rattler_reads_every_normal_form(text: str) -> None:
    rattler = pytest.importorskip("rattler")
    try:
        normal = match_spec(text.strip())
    except Refusal:
        return
    try:
        read = rattler.MatchSpec(normal, True, True)
    except rattler.exceptions.InvalidMatchSpecError:
        # What conda writes differently (1.0.0a_) is the solver's to refuse.
        return
    assert read.name.normalized == name_of(normal)
