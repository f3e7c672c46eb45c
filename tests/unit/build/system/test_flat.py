"""What Apptainer is told to build, and what happens where it fails."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from globus_compute_apptainer.build import squashfs
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.system import flat, unpack
from globus_compute_apptainer.build.system.plan import FLAT_DEFINITION
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import BuildError


@pytest.mark.parametrize(
    ("version", "chosen"),
    [
        ("1.1.0", False),
        ("1.3.6-1.el9", False),
        ("1.4.0", True),
        ("1.4.5-1.el9", True),
        ("1.10.0", True),
        ("2.0.0-rc.1", True),
    ],
)
def test_packing_is_chosen_where_apptainer_knows_the_option(
    version: str, chosen: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(squashfs, "has_zstd", lambda: True)
    monkeypatch.setattr(squashfs, "limits", lambda: ["-processors", "2"])
    words = "-comp zstd -Xcompression-level 3 -processors 2"
    wanted = ["--mksquashfs-args", words] if chosen else []
    assert flat.packing(Apptainer("/x", version)) == wanted


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A SIF with nothing in it."""
    path = tmp_path / "a base, with blanks.sif"
    path.write_bytes((b"\0" * 32 + b"SIF_MAGIC\0").ljust(128, b"\0"))
    return path


def program(folder: Path, script: str) -> Apptainer:
    """An Apptainer that is this shell script."""
    path = folder / "apptainer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Apptainer(str(path), "1.1.0", build_flags=("--fakeroot",))


SHOW = """\
exec >{seen}
printf '%s\\n' "$@"; echo; cat "$(eval echo '${{'$#'}}')"; readlink base.sif
cat "$GC_APPTAINER_LAYERS"; echo; echo "$GC_APPTAINER_PROGRAM"
echo "$APPTAINER_CACHEDIR"
"""


def test_the_definition_is_constant_and_the_rest_are_files(
    make_job, base: Path, tmp_path: Path
):
    seen = tmp_path / "seen"
    config = BuildConfig(env=(("APPTAINER_CACHEDIR", "/mine"),))
    job = make_job(
        apptainer=program(tmp_path, SHOW.format(seen=shlex.quote(str(seen)))),
        site=SiteAccess.from_host({"APPTAINER_CACHEDIR": "/site"}, config, tmp_path),
    )
    layer = Layer("pip", "", tmp_path / "layer.sqfs")
    lock = flat.build_flat(job, base, [layer], tmp_path / "o.sif", apt=["b", "a"])
    assert lock == {"requested": ["a", "b"], "packages": []}
    arguments, _, rest = seen.read_text().partition("\n\n")
    assert arguments.splitlines()[:2] == ["build", "--fakeroot"]
    assert rest.removeprefix(FLAT_DEFINITION).splitlines() == [
        str(base),
        json.dumps([[str(tmp_path / "layer.sqfs"), 0]]),
        unpack.__file__,
        "/mine",
    ]
    assert list(job.scratch.iterdir()) == []


def test_a_build_that_fails_leaves_nothing(make_job, base: Path, tmp_path: Path):
    target = tmp_path / "o.sif"
    script = f"touch {shlex.quote(str(target))}; echo 'No space left on device'; exit 1"
    job = make_job(apptainer=program(tmp_path, script))
    with pytest.raises(BuildError) as caught:
        flat.build_flat(job, base, [], target)
    assert caught.value.code == "disk-full"
    assert not target.exists()
    assert list(job.scratch.iterdir()) == []


def test_a_base_that_is_no_image_is_told(make_job, tmp_path: Path):
    (tmp_path / "base").write_text("not a SIF")
    with pytest.raises(BuildError, match="not a SIF file"):
        flat.build_flat(make_job(), tmp_path / "base", [], tmp_path / "o.sif")


@pytest.mark.parametrize(
    ("wanted", "stage"),
    [
        ({"apt": ["git"], "post": ["true"]}, "apt"),
        ({"post": ["true"]}, "post"),
        ({"post_build": True}, "post"),
        ({}, "pack"),
    ],
)
def test_a_failure_before_any_output_is_of_the_first_stage(
    make_job, base: Path, tmp_path: Path, wanted: dict, stage: str
):
    job = make_job(apptainer=program(tmp_path, "exit 1"))
    with pytest.raises(BuildError) as caught:
        flat.build_flat(job, base, [], tmp_path / "o.sif", **wanted)
    assert caught.value.stage == stage
