"""What uv is asked, and what is made of its answer."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from globus_compute_apptainer.build.inventory import Inventory, Package, Python
from globus_compute_apptainer.build.python import resolution
from globus_compute_apptainer.build.python.resolution import Pin

HASH = "sha256:" + "ab" * 32


def python(*packages: Package, **changes) -> Python:
    fields = {
        "executable": "/usr/bin/python3",
        "version": "3.11.2",
        "implementation": "cpython",
        "prefix": "/usr",
        "base_prefix": "/usr",
        "base_executable": "/usr/bin/python3",
        "site_packages": ("/usr/lib/python3/dist-packages",),
        "free_threaded": False,
        "packages": packages,
    }
    return Python(**{**fields, **changes})


def inventory(*, of: Python | None = None, **changes) -> Inventory:
    fields = {
        "os": "Debian",
        "os_id": "debian",
        "libc": "glibc",
        "libc_version": "2.36",
        "machine": "x86_64",
        "path": "/usr/bin",
        "has_bash": True,
        "python": of or python(),
    }
    return Inventory(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "x86_64-manylinux_2_36"),
        ({"machine": "aarch64"}, "aarch64-manylinux_2_36"),
        ({"libc_version": "2.17"}, "x86_64-manylinux_2_17"),
        ({"libc_version": "2.27"}, "x86_64-manylinux_2_17"),
        ({"libc_version": "2.30"}, "x86_64-manylinux_2_28"),
        ({"libc_version": "2.43"}, "x86_64-manylinux_2_40"),
        ({"libc_version": "2.12"}, None),
        ({"libc_version": ""}, None),
        ({"libc": "musl", "libc_version": "1.2.5"}, "x86_64-unknown-linux-musl"),
        ({"libc": "musl", "libc_version": ""}, "x86_64-unknown-linux-musl"),
        ({"libc": "musl", "libc_version": "1.1.24"}, None),
        ({"libc": ""}, None),
        ({"machine": "riscv64"}, None),
        ({"of": python(implementation="pypy")}, None),
        ({"of": python(free_threaded=True)}, None),
        ({"of": python(version="3.7.9")}, None),
        ({"of": python(version="strange")}, None),
    ],
)
def test_an_image_is_a_platform_of_uv_or_needs_uv_inside(changes, expected):
    assert resolution.platform(inventory(**changes)) == expected


@given(st.integers(0, 99))
def test_the_platform_is_never_newer_than_the_image(minor):
    found = resolution.platform(inventory(libc_version=f"2.{minor}"))
    if found is None:
        assert minor < 17
    else:
        assert 17 <= int(found.rpartition("_")[2]) <= minor


def test_archives_of_sources_are_told_from_wheels():
    wheel = "a @ https://h/a-1.0-py3-none-any.whl#sha256=00"
    archive = "b @ https://h/b.tar.gz"
    assert resolution.sources(["c>=1", wheel, archive]) == [archive]


# As they are written in a lock: without two hyphens in a row.
names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
versions = st.from_regex(
    r"([1-9]!)?[0-9]{1,3}(\.[0-9]{1,3}){0,2}((a|b|rc)[0-9])?(\.post[0-9])?(\+[a-z]{1,3})?",
    fullmatch=True,
)
hashes = st.lists(
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True), unique=True, max_size=3
)


def pins_of(name, version, many, url):
    return Pin(name, version, tuple(sorted(many)), url)


pins = st.builds(
    pins_of, names, versions.map(lambda text: str(Version(text))), hashes, st.just("")
)
urls = st.builds(
    pins_of, names, st.just(""), hashes, st.just("https://h/x/y.tar.gz#egg=y")
)


@given(st.lists(st.one_of(pins, urls), max_size=6))
def test_pins_survive_a_requirements_file(many):
    text = "".join(f"{pin.line}\n" for pin in many)
    assert resolution.parse_pins(text) == tuple(many)


def test_what_uv_writes():
    text = f"""\
# made by uv
--index-url https://h/simple
Foo.Bar[extra]==1.0 ; python_version >= "3" \\
    --hash={HASH} \\
    --hash=sha256:{"00" * 32}
w @ https://h/w-2.0-py3-none-any.whl \\
    --hash={HASH}
    # via foo
plain==1.0RC1
"""
    assert resolution.parse_pins(text) == (
        Pin("foo-bar", "1.0", ("sha256:" + "00" * 32, HASH)),
        Pin("w", "2.0", (HASH,), "https://h/w-2.0-py3-none-any.whl"),
        Pin("plain", "1.0rc1"),
    )


@pytest.mark.parametrize("text", ["a>=1", "a", "a==1.*", "a==1,<2", "not pinned"])
def test_what_is_not_pinned_is_refused(text):
    with pytest.raises(ValueError, match="not a pinned requirement"):
        resolution.parse_pins(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        resolution.parse_pins(text)


def test_what_the_base_has_is_not_installed():
    have = [Package("numpy", "1.26.4"), Package("torch", "2.9.0a0+nv")]
    numpy, torch = Pin("numpy", "1.26.4"), Pin("torch", "2.9.0a0+nv")
    pandas = Pin("pandas", "2.2.0")
    new, had = resolution.beyond([numpy, pandas, torch], have)
    assert (new, had) == ((pandas,), (numpy, torch))


def test_another_version_or_a_url_is_installed():
    have = [Package("numpy", "1.26.4+local"), Package("six", "1.0")]
    other = Pin("numpy", "1.26.4")
    named = Pin("six", "1.0", url="https://h/six-1.0-py3-none-any.whl")
    assert resolution.beyond([other, named], have) == ((other, named), ())


BASE = (
    Package("numpy", "1.26.4"),
    Package("torch", "2.9.0+nv", ("numpy<2", 'six ; python_version < "3"', "?!")),
    Package("scipy", "1.11.0", ("numpy>=1.20",)),
    Package("broken", "1.0", ("numpy>=3",)),
    Package("optional", "1.0", ('numpy<2 ; extra == "old"',)),
)


def test_a_replaced_package_is_a_conflict_for_those_who_do_not_accept_it():
    found = resolution.conflicts(
        inventory(), python(*BASE), [Pin("numpy", "2.1.0"), Pin("six", "1.0")]
    )
    assert [(one.user, one.needs, one.found) for one in found] == [
        ("torch", "numpy<2", "numpy 2.1.0")
    ]
    assert str(found[0]) == (
        "torch 2.9.0+nv of the base image needs numpy<2, and gets numpy 2.1.0"
    )


def test_who_is_replaced_too_has_no_conflict():
    new = [Pin("numpy", "2.1.0"), Pin("torch", "2.10.0")]
    assert resolution.conflicts(inventory(), python(*BASE), new) == ()


def test_what_the_base_did_not_have_is_no_conflict():
    base = python(Package("torch", "2.9.0", ("numpy<2",)))
    assert resolution.conflicts(inventory(), base, [Pin("numpy", "2.1.0")]) == ()


def test_a_url_names_a_hash_that_its_file_must_have():
    url = "https://h/a-1.0-py3-none-any.whl#"
    right = Pin("a", "1.0", (HASH,), f"{url}sha256={'AB' * 32}")
    other = Pin("a", "1.0", (HASH,), f"{url}sha512=00")
    none = Pin("a", "1.0", (HASH,), url)
    wrong = Pin("a", "1.0", (HASH,), f"{url}sha256={'00' * 32}")
    assert resolution.misnamed([right, other, none, wrong]) == [wrong]


NO_WHEEL = """\
error: No solution found when resolving dependencies
  cause: Because srconly==1.0 has no usable wheels and you require srconly, …

hint: Wheels are required for `srconly` because building from source is disabled \
for all packages (i.e., with `--no-build`)"""


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        (NO_WHEEL, "srconly"),
        (NO_WHEEL.replace(" is disabled", "\n      is\n      disabled"), "srconly"),
        ("  cause: Building source distributions for `antlr` is disabled", "antlr"),
        (
            "error: Building source distributions is disabled, but attempted to "
            "build `srconly`",
            "a package",
        ),
        ("  cause: Because nosuch was not found in the package registry", None),
        ("  cause: Because a==1.0 has no wheels with a matching Python ABI tag", None),
        ("", None),
    ],
)
def test_what_lacks_a_wheel_is_told_from_what_cannot_be_had(said, lacking):
    assert resolution.lacks_wheels(said.splitlines()) == lacking


def test_withdrawn_versions_are_remarked_on():
    said = ["Resolved 1 package", 'warning: `a==2.0` is yanked (reason: "bad")']
    assert resolution.yanked(said) == ['`a==2.0` is yanked (reason: "bad")']
