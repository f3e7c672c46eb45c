"""What is written down of an image, taken elsewhere, and used to make it again."""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from globus_compute_apptainer.build import sif
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.system.flat import packing
from provision.conda_channel import Channel, Package
from provision.web import Web, git, make_repository, served

from .conftest import ALPHA

if TYPE_CHECKING:
    from tests.integration.cli.conftest import Site

pytestmark = pytest.mark.apptainer

PROGRAM = "import iniconfig, sys; print(iniconfig.__file__, *sys.version_info[:2])"


@pytest.fixture(scope="module")
def built(site: Site) -> Any:
    return site.json("build", "small")


@pytest.fixture(scope="module")
def exported(site: Site, built: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    site.json("export", "small", str(folder))
    return folder


def inside(image: Path, *command: str) -> str:
    """What a command says in an image, started by plain Apptainer."""
    apptainer = Apptainer.find()
    argv = apptainer.exec_argv(image, command, options=["--no-home"], cwd="/")
    ran = subprocess.run(
        argv, env=apptainer.environment(), capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_an_image_is_shown_by_any_name(site: Site, built: Any) -> None:
    said = site.run("show", "small").stdout
    for part in (built["image_digest"], "iniconfig ", "resolved ", "just now"):
        assert part in said
    short = built["image_digest"].removeprefix("sha256:")[:12]
    manifest = site.json("show", short)
    assert manifest["lock"]["base"]["digest"] == built["base_digest"]
    assert [layer["kind"] for layer in manifest["layers"]] == ["pip"]
    (package,) = manifest["lock"]["pip"]["packages"]
    assert package["name"] == "iniconfig"
    assert package["hashes"][0].startswith("sha256:")


def test_an_exported_image_stands_by_itself(exported: Path, built: Any) -> None:
    assert inside(exported / "image.sif", "python3", "-c", PROGRAM).endswith("3 11")
    sbom = json.loads((exported / "sbom.cdx.json").read_text())
    purls = {part.get("purl", "") for part in sbom["components"]}
    (version,) = {p for p in built["packages"] if p.startswith("iniconfig==")}
    assert "pkg:pypi/" + version.replace("==", "@") in purls


def test_a_flat_export_has_no_layers(site: Site, exported: Path, tmp_path) -> None:
    site.json("export", "--flat", "small", str(tmp_path))
    flat = tmp_path / "image.sif"
    assert sif.overlays(sif.parts(flat)) == []
    assert sif.overlays(sif.parts(exported / "image.sif")) != []
    program = ("python3", "-c", PROGRAM)
    assert inside(flat, *program) == inside(exported / "image.sif", *program)
    assert list(site.scratch.iterdir()) == []


def test_a_lock_makes_the_same_again_elsewhere(
    site: Site, exported: Path, built: Any, tmp_path: Path
) -> None:
    lock = exported / "lock.json"
    cache = ("--cache-dir", str(tmp_path / "other"))
    again = site.json("build", *cache, "--locked", str(lock))
    assert again["cache"] == "built"
    assert again["spec_digest"] == built["spec_digest"]
    assert again["base_digest"] == built["base_digest"]
    assert again["packages"] == built["packages"]
    # From the manifest, and into the cache where it is already.
    manifest = Path(built["path"]).with_name("manifest.json")
    assert site.json("build", "--locked", str(manifest))["cache"] == "built"


def changed(lock: Path, tmp_path: Path, **package: Any) -> Path:
    document = json.loads(lock.read_text())
    document["pip"]["packages"][0].update(package)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "package", [{"version": "0.0.7"}, {"hashes": ["sha256:" + "0" * 64]}]
)
def test_what_can_no_longer_be_had_is_said(
    site: Site, exported: Path, tmp_path: Path, package: Any
) -> None:
    path = changed(exported / "lock.json", tmp_path, **package)
    cache = ("--cache-dir", str(tmp_path / "other"))
    ran = site.run("build", "--json", *cache, "--locked", str(path))
    assert ran.returncode == 1
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("lock-unavailable", "pip"), error
    assert "iniconfig" in " ".join([error["message"], *error["tail"]])


def test_debian_packages_are_locked(site: Site, tmp_path: Path) -> None:
    spec = '{"python": "3.11", "apt": ["hello"]}'
    built = site.json("build", spec)
    (package,) = built["lock"]["apt"]["packages"]
    site.json("export", spec, str(tmp_path))
    lock = tmp_path / "lock.json"
    again = site.json("build", "--locked", str(lock))
    assert again["lock"]["apt"]["packages"] == [package]
    assert again["lock"]["apt"]["requested"] == [f"hello={package['version']}"]

    document = json.loads(lock.read_text())
    document["apt"]["packages"][0]["version"] = "1.0-gone"
    lock.write_text(json.dumps(document))
    ran = site.run("build", "--json", "--locked", str(lock))
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("lock-unavailable", "apt"), error


def test_a_base_that_is_gone(site: Site, exported: Path, tmp_path: Path) -> None:
    document = json.loads((exported / "lock.json").read_text())
    document["base"]["digest"] = "sha256:" + "0" * 64
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    cache = ("--cache-dir", str(tmp_path / "other"))
    ran = site.run("build", "--json", *cache, "--locked", str(path))
    assert json.loads(ran.stderr)["error"]["code"] == "lock-unavailable"


def test_the_definition_file_builds(site: Site, registry: str, tmp_path: Path) -> None:
    base = f"docker://{registry}/nopython:latest"
    spec = json.dumps({"base_image": base, "post": ["echo made > /made"]})
    site.json("export", spec, str(tmp_path))
    apptainer = Apptainer.find()
    target = tmp_path / "again.sif"
    options = packing(apptainer)
    argv = apptainer.build_argv(tmp_path / "image.def", target, options=options)
    env = {**apptainer.environment(), "APPTAINER_NOHTTPS": "1"}
    ran = subprocess.run(
        argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    for image in (target, tmp_path / "image.sif"):
        assert inside(image, "cat", "/made") == "made"


@pytest.mark.parametrize("name", ["requirements.txt", "work.py", "repo"])
def test_what_people_have(site: Site, built: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "repo":
        path.mkdir()
        (path / "runtime.txt").write_text("python-3.11")
        (path / "requirements.txt").write_text("iniconfig")
    elif name == "work.py":
        path.write_text('# /// script\n# dependencies = ["iniconfig"]\n# ///\n')
    else:
        path.write_text("iniconfig\n")
    options = [] if name == "repo" else ["--python", "3.11"]
    found = site.json("build", *options, str(path))
    assert (found["cache"], found["spec_digest"]) == ("hit", built["spec_digest"])


def test_hashes_of_a_requirements_file_are_checked(
    site: Site, built: Any, tmp_path: Path
) -> None:
    (package,) = built["lock"]["pip"]["packages"]
    path = tmp_path / "requirements.txt"
    pin = f"iniconfig=={package['version']}"
    good = " ".join(f"--hash={one}" for one in package["hashes"])
    path.write_text(f"{pin} {good}\n")
    found = site.json("build", "--python", "3.11", str(path))
    assert found["packages"] == built["packages"]
    path.write_text(f"{pin} --hash=sha256:{'0' * 64}\n")
    ran = site.run("build", "--json", "--python", "3.11", str(path))
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("hash-mismatch", "pip"), error


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with served(tmp_path_factory.mktemp("web")) as made:
        yield made


Ran = subprocess.CompletedProcess[str]


def locked_elsewhere(site: Site, lock: Path, other: Path) -> Ran:
    cache = ("--cache-dir", str(other))
    return site.run("build", "--json", *cache, "--locked", str(lock))


def test_conda_and_payload_are_locked_too(
    site: Site, channel: Channel, web: Web, tmp_path: Path
) -> None:
    make_repository(
        web, "code", {"mine.py": "x = 1\n", "requirements.txt": "iniconfig"}
    )
    url = f"git+{web.url}/git/code#main"
    spec = json.dumps({"python": "3.11", "conda": ["alpha"], "payload_url": url})
    built = site.json("build", spec)
    site.json("export", spec, str(tmp_path / "export"))
    lock = tmp_path / "export/lock.json"
    # What names mean moves on.
    channel.add(Package("alpha", "2.0"))
    repository = web.repositories / "code"
    (repository / "mine.py").write_text("x = 2\n")
    git(repository, "commit", "--quiet", "-am", "second")

    ran = locked_elsewhere(site, lock, tmp_path / "other")
    assert ran.returncode == 0, ran.stderr
    again = json.loads(ran.stdout)
    assert again["cache"] == "built"
    assert again["spec_digest"] == built["spec_digest"]
    locks = [again["lock"], built["lock"]]
    assert locks[0]["conda"]["packages"] == locks[1]["conda"]["packages"]
    assert locks[0]["pip"]["packages"] == locks[1]["pip"]["packages"]
    assert locks[0]["payload"]["commit"] == locks[1]["payload"]["commit"]
    assert inside(Path(again["path"]), "alpha") == "alpha 1.0"
    assert inside(Path(again["path"]), "cat", "/payload/mine.py") == "x = 1"
    # A build that is not locked has what is new.
    fresh = site.json("build", "--cache-dir", str(tmp_path / "third"), spec)
    assert inside(Path(fresh["path"]), "cat", "/payload/mine.py") == "x = 2"
    versions = [p["version"] for p in fresh["lock"]["conda"]["packages"]]
    assert versions == ["2.0"]

    channel.remove(ALPHA)
    ran = locked_elsewhere(site, lock, tmp_path / "fourth")
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("lock-unavailable", "conda"), error
    assert "alpha" in " ".join([error["message"], *error["tail"]])


def test_a_payload_that_is_another_by_now(site: Site, web: Web, tmp_path: Path) -> None:
    def archive(text: str) -> str:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr(zipfile.ZipInfo("mine.py"), text)
        return web.serve("/it.zip", buffer.getvalue())

    spec = json.dumps({"python": "3.11", "payload_url": archive("x = 1\n")})
    site.json("build", spec)
    site.json("export", spec, str(tmp_path / "export"))
    archive("x = 2\n")
    lock = tmp_path / "export/lock.json"
    ran = locked_elsewhere(site, lock, tmp_path / "other")
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["stage"]) == ("lock-unavailable", "payload"), error
