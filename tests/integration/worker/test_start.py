"""Containers that start, share, give way, or do not start at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.apptainer


def pid():
    import os

    return os.getpid()


def version():
    import sys

    return sys.version_info[:2]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


def test_different_runs_get_different_containers(inside):
    variants = [
        inside.with_order(warm_per_worker=9),
        inside.with_order(warm_per_worker=9, env=(("A", "1"),)),
        inside.with_order(warm_per_worker=9, binds=("/usr:/mnt",)),
        inside.with_order(warm_per_worker=9, options=("--containall",)),
    ]
    pids = [variant.value(pid) for variant in variants]
    assert len(set(pids)) == 4
    assert [variant.value(pid) for variant in variants] == pids


def test_least_recently_used_container_gives_way(inside):
    a, b, c = (
        inside.with_order(env=(("NAME", name),), warm_per_worker=2) for name in "abc"
    )
    first, second = a.value(pid), b.value(pid)
    assert a.value(pid) == first
    third = c.value(pid)
    assert not alive(second)
    assert alive(first) and alive(third)
    assert (a.value(pid), c.value(pid)) == (first, third)


def test_bind_and_option_arrive(inside, tmp_path):
    def look():
        import os

        return os.path.exists("/given/file"), os.path.exists(os.environ["SCRATCH"])

    (tmp_path / "file").touch()
    given = inside.with_order(
        binds=(f"{tmp_path}:/given:ro",),
        options=("--no-home",),
        env=(("SCRATCH", os.environ["HOME"] + "/.."),),
    )
    assert given.value(look)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "nvidia"},
        {"gpu": "rocm"},
        {"options": ("--writable-tmpfs",)},
        {"env": (("PATH", "/nowhere"), ("SHELL", "/none"), ("LANG", "xx_YY"))},
        {"binds": ("/dev/null:/bin/bash",)},
    ],
    ids=["nv without a device", "rocm without a device", "tmpfs", "PATH", "no bash"],
)
def test_odd_surroundings_do_not_keep_it_from_starting(inside, changes):
    assert inside.with_order(**changes).value(version) == (3, 11)


@pytest.fixture
def newer(inside, pull):
    sif = pull("python:3.13-slim")
    return inside.with_order(
        image=str(sif), size=sif.stat().st_size, python_version="3.13.5"
    )


def test_source_runs_on_another_python(newer):
    result = newer.result(version)
    assert newer.value(version) == (3, 13)
    assert result.details["python_version"].startswith("3.13.")


def test_exceptions_on_another_python(newer):
    def fail():
        raise ValueError("as usual")

    result = newer.result(fail)
    assert result.error_details.code == "RemoteExecutionError"
    assert result.data.endswith("ValueError: as usual\n")


def test_image_without_python(inside, nopython_sif):
    order = {"image": str(nopython_sif), "size": nopython_sif.stat().st_size}
    result = inside.with_order(**order, python=None, python_version=None).result(pid)
    assert result.error_details.code == "no-python"
    assert "base_image" in result.data


def failure(inside, **changes) -> tuple[str, str]:
    result = inside.with_order(env=(("FRESH", str(changes)),), **changes).result(pid)
    assert result.is_error and result.details["container"]["cache"] == "hit"
    return result.error_details.code, result.data


def test_image_is_gone(inside):
    code, text = failure(inside, image="/no/such/image.sif")
    assert code == "image-missing"
    assert "/no/such/image.sif" in text and "No such file" in text


def test_image_has_another_size(inside):
    code, text = failure(inside, size=1)
    assert code == "image-missing" and "instead of 1" in text


def test_truncated_image(inside, python_sif, tmp_path):
    bad = tmp_path / "bad.sif"
    bad.write_bytes(python_sif.read_bytes()[:100_000])
    code, text = failure(inside, image=str(bad), size=100_000)
    assert code == "container-start-failed"
    assert "damaged" in text and "exit code 255" in text


def test_file_that_is_no_image(inside, tmp_path):
    bad = tmp_path / "bad.sif"
    bad.write_text("not an image")
    code, text = failure(inside, image=str(bad), size=12)
    assert code == "container-start-failed" and "damaged" in text


def test_python_that_is_not_there(inside):
    code, text = failure(inside, python="/no/such/python")
    assert code == "container-start-failed"
    assert "/no/such/python" in text


def test_python_that_is_too_old_says_so(inside, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        "echo 'the image has Python 3.8; tasks need 3.9 or newer' >&2; exit 1\n"
    )
    fake.chmod(0o755)
    binds = (f"{fake}:/fake/python",)
    code, text = failure(inside, python="/fake/python", binds=binds)
    assert code == "container-start-failed"
    assert "Python 3.8" in text and "newer Python" in text


def test_start_takes_too_long(inside, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho waiting >&2\nexec sleep 1000\n")
    fake.chmod(0o755)
    code, text = failure(
        inside,
        python="/fake/python",
        binds=(f"{fake}:/fake/python",),
        start_timeout=1.5,
    )
    assert code == "container-start-failed"
    assert "did not start within 1.5 s" in text


def test_refused_bind(inside):
    code, text = failure(inside, binds=("/no/such/folder:/mnt",))
    assert code == "container-start-failed"
    assert "/no/such/folder" in text


def test_no_apptainer(inside):
    code, text = failure(inside, apptainer="/no/such/apptainer")
    assert code == "apptainer-missing"
    assert "/no/such/apptainer" in text


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo apptainer version 1.0.3; exit 1", "apptainer-broken"),
        ("[ $# = 1 ] && echo apptainer version 1.0.3 || exit 1", "apptainer-too-old"),
        ("exit 1", "apptainer-broken"),
    ],
)
def test_an_apptainer_that_is_no_good(inside, tmp_path, script, expected):
    program = tmp_path / "apptainer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    code, text = failure(inside, apptainer=str(program))
    assert code == expected, text
    assert str(program) in text


def test_value_needs_no_explanation(inside):
    """A failed start must not spoil the next task."""
    failure(inside, image="/no/such/image.sif")
    assert inside.value(version) == (3, 11)
