"""What is laid out for a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build import flat
from globus_compute_apptainer.build.apptainer import Apptainer, Completed
from globus_compute_apptainer.build.plan import KIT, plan
from globus_compute_apptainer.build.site import CA_INSIDE, SiteAccess
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.model import ImageSpec


def test_the_kit_holds_data_and_one_constant_program(tmp_path: Path):
    recipe = plan(ImageSpec("x", "docker", "3.11", pip=("a",), post=("echo $(id)",)))
    (tmp_path / "ca").write_text("PEM")
    (tmp_path / "wheels").mkdir()
    site = SiteAccess(
        variables={"A": "x y", "B": "$(id)"},
        folders=(tmp_path / "wheels",),
        ca_bundle=tmp_path / "ca",
    )
    binds = flat.lay_out(recipe, site, tmp_path)
    kit = tmp_path / "kit"
    files = {
        str(path.relative_to(kit)): path.read_text()
        for path in kit.rglob("*")
        if path.is_file()
    }
    assert (
        files.pop("stages.sh") == (Path(flat.__file__).parent / "stages.sh").read_text()
    )
    assert files.pop("apt.conf") == site.apt_conf()
    assert files.pop("uv", "") == ""
    assert files == {
        "requirements.txt": "a\n",
        "post.sh": "echo $(id)\n",
        "python.txt": "3.11\n",
        "site.env": "A=x y\nB=$(id)\n",
        "ca.crt": "",
    }
    assert binds[:2] == [f"{kit}:{KIT}:ro", f"{tmp_path}/work:{KIT}/work"]
    assert f"{tmp_path}/wheels:{KIT}/site/0:ro" in binds
    assert f"{tmp_path}/ca:{CA_INSIDE}:ro" in binds
    for line in binds:
        target = line.split(":")[1]
        assert (kit / Path(target).relative_to(KIT)).exists()


@pytest.mark.parametrize(
    ("agent", "base", "needed"),
    [
        ("docker", "127.0.0.1:5000/python:3", True),
        ("oras", "127.0.0.1:5000/python:3", True),
        ("docker", "python:3", False),
        ("docker", "127.0.0.1:50001/python:3", False),
        ("localimage", "127.0.0.1:5000/x", False),
    ],
)
def test_http_is_for_named_registries_only(agent: str, base: str, needed: bool):
    assert flat.needs_http(agent, base, ("127.0.0.1:5000",)) == needed


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
    monkeypatch.setattr(flat, "can_pack_zstd", lambda: True)
    wanted = ["--mksquashfs-args", flat.PACKING] if chosen else []
    assert flat.packing(Apptainer("/x", version)) == wanted


def test_the_environment_for_builds_reaches_apptainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {}

    def run(argv, *, env, **_):
        given.update(env)
        return Completed(0, 0.0)

    monkeypatch.setattr(flat, "run", run)
    config = BuildConfig(env=(("APPTAINER_CACHEDIR", "/mine"),))
    environ = {"APPTAINER_CACHEDIR": "/site"}
    flat.build_flat(
        Apptainer("/x", "1.4.5"),
        plan(ImageSpec("x", "docker")),
        SiteAccess.from_host(environ, config, tmp_path),
        tmp_path,
        http=False,
        timeout=1.0,
        on_line=print,
    )
    assert given["APPTAINER_CACHEDIR"] == "/mine"
