"""The layer of Python packages, made for real and run over its base.

But for pandas, packages come from a directory of the test's own, and no index.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from globus_compute_apptainer.build import inventory
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.layer import Layer
from globus_compute_apptainer.build.layers import Below, sif_with
from globus_compute_apptainer.build.python import resolution, uv
from globus_compute_apptainer.build.python.bytecode import compile_bytecode
from integration.build.world import World, names
from provision.wheels import PYPROJECT, make_sdist, make_wheel, source_files

pytestmark = pytest.mark.apptainer


@pytest.mark.parametrize("image", ["python:3.11-slim", "python:3.13-slim"])
def test_pandas(world: World, pull, make_job, image: str):
    below = world.below(pull(image))
    layer = world.layer(below, "pandas", job=make_job(scratch=world.folder / "s"))
    assert layer is not None
    assert layer.lock["way"] == "wheels"
    assert {"pandas", "numpy"} <= {one["name"] for one in layer.lock["packages"]}
    assert all(one["hashes"] for one in layer.lock["packages"])
    program = """
import pandas, sys
from importlib.metadata import files, version
print(int(pandas.Series([1, 2]).sum()), version("pandas") == pandas.__version__)
print(sys.prefix, all(f.locate().exists() for f in files("numpy")))
"""
    shown = world.python(below, layer, program)
    assert shown == ["3 True", "/.gc-apptainer/env True"]
    assert world.inside(below, layer, "f2py", "-v")[0][0].isdigit()
    assert world.inside(below, layer, "sh", "-c", f"ls {layer.marker}")
    work = world.packages / "work"
    assert list(work.iterdir()) == []


EVERYTHING = {
    "whole/part.py": "def run():\n    print(1)\n",  # no __init__: a namespace package
    "extra_path.pth": "/payload-of-a-pth\n",
    "whole-1.0.data/data/share/whole/data.txt": "data",
    "whole-1.0.data/data/etc/whole.conf": "conf",
    "whole-1.0.data/scripts/plain-script": "#!python\nprint('plain')\n",
    "whole-1.0.data/headers/whole.h": "int a;",
    "INFO/entry_points.txt": "[console_scripts]\nwhole-entry = whole.part:run\n",
}


def test_all_that_a_wheel_can_bring(world: World, base: Below):
    make_wheel(world.links, "whole", "1.0", files=EVERYTHING)
    make_wheel(world.links, "whole-more", "1.0", files={"whole/more.py": "there = 1\n"})
    layer = world.layer(base, "whole", "whole-more")
    assert layer is not None
    program = """
import sys, whole.part, whole.more
from importlib.metadata import files
print([str(f) for f in files("whole") if not f.locate().exists()])
print("/payload-of-a-pth" in sys.path or "not there, so not added")
print(open(sys.prefix + "/share/whole/data.txt").read())
"""
    first, second, third = world.python(base, layer, program)
    assert (first, third) == ("[]", "data")
    assert second == "not there, so not added"
    assert world.inside(base, layer, "plain-script") == ["plain"]
    env = "/.gc-apptainer/env"
    found = world.inside(base, layer, "sh", "-c", f"cd {env}; ls bin etc include/site")
    assert {"whole-entry", "whole.conf", "python3.11"} <= set(found)
    assert world.inside(base, layer, "whole-entry") == ["1"]


def test_everyone_can_read_it_whatever_the_umask(world: World, base: Below):
    make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "two-parts", "1.0", files={"two/parts.py": ""})
    before = os.umask(0o077)
    try:
        layer = world.layer(base, "alpha", "two-parts")
    finally:
        os.umask(before)
    hidden = "find /.gc-apptainer ! -perm -o=r; stat -c %a /"
    assert world.inside(base, layer, "sh", "-c", hidden) == ["755"]


def test_what_the_base_has_is_not_installed_again(world: World, python_sif: Path):
    alpha = make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "alpha", "2.0")
    make_wheel(world.links, "beta", "1.0", ["alpha"])
    below = world.base_with(python_sif, alpha)
    layer = world.layer(below, "beta")
    assert names(layer) == ["beta==1.0"]
    assert layer.lock["from_base"] == [{"name": "alpha", "version": "1.0"}]
    program = "import alpha, beta; print(alpha.version, beta.version)"
    assert world.python(below, layer, program) == ["1.0 1.0"]
    assert world.layer(below, "alpha>=1") is None


def test_a_vendor_build_is_kept(world: World, python_sif: Path):
    vendor = make_wheel(world.folder / "vendor", "alpha", "2.5a0+local", ["nowhere"])
    make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "alpha", "2.0")
    make_wheel(world.links, "beta", "1.0", ["alpha>=1.5"])
    below = world.base_with(python_sif, vendor)
    layer = world.layer(below, "beta")
    assert names(layer) == ["beta==1.0"]
    assert layer.lock["from_base"] == [{"name": "alpha", "version": "2.5a0+local"}]
    # What the index never had is not missed either.
    assert world.layer(below, "alpha") is None


def test_another_version_is_installed_and_who_suffers_is_told(
    world: World, python_sif: Path
):
    old = make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "alpha", "2.0")
    gamma = make_wheel(world.folder / "vendor", "gamma", "1.0+own", ["alpha<2"])
    below = world.base_with(python_sif, old, gamma)
    layer = world.layer(below, "alpha==2.0")
    assert names(layer) == ["alpha==2.0"]
    (note,) = layer.lock["notes"]
    assert note == "gamma 1.0+own of the base image needs alpha<2, and gets alpha 2.0"
    assert note in world.log
    assert world.python(below, layer, "import alpha; print(alpha.version)") == ["2.0"]
    error = world.error(below, "alpha==2.0", "gamma")
    assert error.code == "package-conflict"
    assert "gamma 1.0+own of the base image needs alpha<2" in error.message


def test_the_same_packages_are_one_layer(world: World, base: Below):
    make_wheel(world.links, "alpha", "1.0")
    first = world.layer(base, "alpha")
    second = world.layer(base, "alpha>=1")
    assert first.file == second.file
    assert (first.lock["requirements"], second.lock["requirements"]) == (
        ["alpha"],
        ["alpha>=1"],
    )
    assert world.log.count("$ uv pip install") == 1


def test_sources_are_built_inside(world: World, base: Below):
    make_sdist(world.links, "srconly", "1.0", "return sys.version_info[:2]")
    make_wheel(world.links, "alpha", "1.0", ["srconly"])
    layer = world.layer(base, "alpha")
    assert layer.lock["way"] == "inside"
    assert names(layer) == ["alpha==1.0", "srconly==1.0"]
    program = "import alpha, srconly; print(srconly.seen)"
    assert world.python(base, layer, program) == ["(3, 11)"]
    assert "no wheel of srconly for this image" in world.log
    assert list((world.folder / "scratch").iterdir()) == []


def test_a_source_tree_is_installed_with_what_it_needs(world: World, base: Below):
    make_wheel(world.links, "alpha", "1.0")
    tree = world.folder / "tree"
    tree.mkdir()
    for name, text in source_files("mine", "3.0", "return 'built'").items():
        (tree / name).write_text(text)
    project = '[project]\nname = "mine"\nversion = "3.0"\ndependencies = ["alpha"]\n'
    (tree / "pyproject.toml").write_text(PYPROJECT + project)
    layer = world.layer(base, project=tree)
    assert names(layer) == ["alpha==1.0"]
    assert layer.lock["project"] == [{"name": "mine", "version": "3.0"}]
    program = "import alpha, mine; print(mine.seen)"
    assert world.python(base, layer, program) == ["built"]
    assert sorted(path.name for path in tree.iterdir()) == [
        "backend.py",
        "pyproject.toml",
    ]
    (tree / "new.py").touch()
    assert world.layer(base, project=tree).key != layer.key


HOSTILE = """
seen = []
for place in {places!r}:
    for folder, names, files in os.walk(place):
        seen += [os.path.join(folder, name) for name in files]
    try:
        with open(os.path.join(place, "poison"), "w") as file:
            file.write("x")
        seen.append("wrote " + place)
    except OSError:
        pass
mine = os.getpid()
for entry in os.listdir("/proc"):
    if entry == {pid!r}:
        seen.append("sees the endpoint")
return seen
"""


def test_what_builds_sees_nothing_of_the_shared_cache(world: World, base: Below):
    make_wheel(world.links, "alpha", "1.0")
    world.layer(base, "alpha")
    hook = HOSTILE.format(
        places=[str(world.packages), str(world.folder / "v2"), "/tmp"],
        pid=str(os.getpid()),
    )
    make_sdist(world.links, "hostile", "1.0", hook)
    before = contents(world.packages / "uv")
    layer = world.layer(base, "hostile", "alpha")
    assert layer.lock["way"] == "inside"
    (seen,) = world.python(base, layer, "import hostile; print(hostile.seen)")
    left = [one for one in eval(seen) if not one.startswith("/tmp/")]
    assert left == ["wrote /tmp"]
    assert not Path("/tmp/poison").exists()
    after = contents(world.packages / "uv")
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if "hostile" in path]


def contents(top: Path) -> dict[str, bytes]:
    """Of what uv keeps of packages; its notes on interpreters come and go."""
    return {
        str(path): path.read_bytes()
        for path in (top / "archive-v0").rglob("*")
        if path.is_file()
    }


def in_environment(root: Path) -> None:
    """As ``python -m venv /opt/venv`` makes it, with a package, first on PATH."""
    env = root / "opt/venv"
    for folder in ("bin", "lib/python3.11/site-packages"):
        (env / folder).mkdir(parents=True)
    (env / "bin/python").symlink_to("/usr/bin/python3")
    (env / "bin/python3").symlink_to("python")
    text = "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11.2\n"
    (env / "pyvenv.cfg").write_text(text)
    wheel = make_wheel(root.parent / "vendor", "alpha", "1.0")
    zipfile.ZipFile(wheel).extractall(env / "lib/python3.11/site-packages")
    script = root / ".singularity.d/env/92-opt.sh"
    script.parent.mkdir(parents=True)
    script.write_text("PATH=/opt/venv/bin:$PATH\nexport PATH\n")


def test_a_base_whose_python_is_in_an_environment(world: World, python_sif: Path):
    below = world.below(python_sif, world.files("venv", in_environment))
    make_wheel(world.links, "beta", "1.0", ["alpha"])
    layer = world.layer(below, "beta")
    assert names(layer) == ["beta==1.0"]
    program = "import alpha, beta, sys; print(alpha.__file__, beta.__file__)"
    assert world.python(below, layer, program) == [
        "/opt/venv/lib/python3.11/site-packages/alpha.py "
        "/.gc-apptainer/env/lib/python3.11/site-packages/beta.py"
    ]


def test_sources_are_built_over_lower_layers(world: World, python_sif: Path):
    below = world.below(python_sif, world.files("venv", in_environment))
    make_sdist(world.links, "srconly", "1.0", "return sys.prefix")
    make_wheel(world.links, "beta", "1.0", ["srconly", "alpha"])
    layer = world.layer(below, "beta")
    assert (names(layer), layer.lock["way"]) == (
        ["beta==1.0", "srconly==1.0"],
        "inside",
    )
    assert layer.lock["from_base"] == [{"name": "alpha", "version": "1.0"}]
    program = "import alpha, beta, srconly; print(alpha.version)"
    assert world.python(below, layer, program) == ["1.0"]


def test_an_image_of_no_known_platform_is_asked_itself(
    world: World, base: Below, monkeypatch
):
    monkeypatch.setattr(resolution, "platform", lambda found: None)
    make_wheel(world.links, "alpha", "1.0")
    layer = world.layer(base, "alpha")
    assert (names(layer), layer.lock["way"]) == (["alpha==1.0"], "inside")


def test_uv_that_does_not_run_in_the_image(world: World, base: Below, monkeypatch):
    text = world.folder / "not-a-program"
    text.write_text("nothing")
    monkeypatch.setattr(uv, "static_program", lambda host, machine: text)
    make_sdist(world.links, "srconly", "1.0")
    assert world.error(base, "srconly").code == "no-pip"


def test_a_base_made_by_this_package(world: World, base: Below):
    make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "beta", "1.0", ["alpha"])
    lower = world.layer(base, "alpha")
    image = world.folder / "made.sif"
    sif_with(world.job(), base.sif, [lower], image)
    below = world.below(image)
    layer = world.layer(below, "beta")
    assert names(layer) == ["beta==1.0"]
    program = "import alpha, beta, sys; print(sys.prefix, alpha.version)"
    assert world.python(below, layer, program) == ["/.gc-apptainer/env2 1.0"]


def test_a_layer_below_that_is_not_shown_is_an_error(world: World, base: Below):
    make_sdist(world.links, "srconly", "1.0")
    absent = Layer("apt", "sha256:" + "9" * 64, world.files("x", lambda r: None).file)
    below = Below(base.base_digest, base.sif, base.inventory, (absent,))
    assert world.error(below, "srconly").code == "overlay-unavailable"


def test_no_python(world: World, nopython_sif: Path):
    assert world.error(world.below(nopython_sif), "six").code == "no-python"


@pytest.mark.parametrize(
    ("requirement", "code", "words"),
    [
        ("nosuch-package", "package-not-found", "no index has a package or version"),
        ("alpha>=7", "package-not-found", "no index has a package or version"),
        ("otherpy", "package-not-found", "for other Pythons or systems only"),
        ("needs-old", "package-conflict", "do not go together"),
        ("broken-source", "build-failed", "could not be built from its sources"),
        ("srconly>=2", "package-not-found", "no index has a package or version"),
    ],
)
def test_what_cannot_be_had(world: World, base: Below, requirement, code, words):
    make_wheel(world.links, "alpha", "1.0")
    make_wheel(world.links, "alpha", "2.0")
    make_wheel(world.links, "otherpy", "1.0", tag="cp38-cp38-manylinux_2_17_x86_64")
    make_wheel(world.links, "needs-new", "1.0", ["alpha>=2"])
    make_wheel(world.links, "needs-old", "1.0", ["alpha<2", "needs-new"])
    make_sdist(world.links, "srconly", "1.0")
    make_sdist(world.links, "broken-source", "1.0", "raise RuntimeError('no')")
    error = world.error(base, requirement)
    assert (error.code, words in error.message) == (code, True), error.render()
    causes = [line for line in error.tail if re.match(r"error:|  \S ", line)]
    assert len(causes) == 1
    assert list((world.packages / "work").iterdir()) == []


def test_a_file_that_is_not_what_its_hash_says(world: World, base: Below):
    wheel = make_wheel(world.links, "alpha", "1.0")
    error = world.error(base, f"alpha @ {wheel.as_uri()}#sha256={'0' * 64}")
    assert error.code == "hash-mismatch"


def test_a_url(world: World, base: Below):
    wheel = make_wheel(world.folder / "elsewhere", "alpha", "1.0")
    layer = world.layer(base, f"alpha @ {wheel.as_uri()}")
    (package,) = layer.lock["packages"]
    assert (package["version"], package["url"]) == ("1.0", wheel.as_uri())


def test_withdrawn_versions(world: World, base: Below):
    page = world.folder / "index/simple/alpha"
    page.mkdir(parents=True)
    rows = []
    for version, yanked in (("1.0", ""), ("2.0", ' data-yanked="wrong"')):
        wheel = make_wheel(world.folder / "index/files", "alpha", version)
        rows.append(f'<a href="../../files/{wheel.name}"{yanked}>{wheel.name}</a>')
    (page / "index.html").write_text(f"<html><body>{''.join(rows)}</body></html>")
    world.environ["PIP_NO_INDEX"] = ""
    world.environ["PIP_INDEX_URL"] = (world.folder / "index/simple").as_uri()
    assert names(world.layer(base, "alpha")) == ["alpha==1.0"]
    exact = world.layer(base, "alpha==2.0")
    assert exact.lock["notes"] == ['`alpha==2.0` is yanked (reason: "wrong")']
    error = world.error(base, "alpha>=2")
    assert error.code == "package-not-found"
    assert "withdrawn" in error.message


def test_an_index_that_does_not_answer(world: World, base: Below):
    world.environ["PIP_NO_INDEX"] = ""
    world.environ["PIP_INDEX_URL"] = "http://me:hunter22@127.0.0.1:9/simple"
    error = world.error(base, "six")
    assert error.code == "index-unreachable"
    assert "hunter22" not in error.render() + world.log


def line(wheel: Path, name: str) -> str:
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def test_a_lock_is_installed_exactly(world: World, base: Below):
    alpha = make_wheel(world.links, "alpha", "1.0", ["beta"])
    make_wheel(world.links, "alpha", "2.0")
    layer = world.layer(base, "alpha", locked=[line(alpha, "alpha")])
    assert names(layer) == ["alpha==1.0"]
    assert "uv pip compile" not in world.log


def test_a_lock_that_can_no_longer_be_had(world: World, base: Below):
    alpha = make_wheel(world.links, "alpha", "1.0")
    locked = [line(alpha, "alpha")]
    make_wheel(world.links, "alpha", "1.0", ["changed"])
    error = world.error(base, locked=locked)
    assert error.code == "hash-mismatch"
    assert any("`alpha==1.0`" in one for one in error.tail)
    alpha.unlink()
    gone = world.error(base, locked=locked)
    assert gone.code == "package-not-found"
    assert any("alpha" in one for one in gone.tail)


def test_a_lock_of_sources_is_built_inside(world: World, base: Below):
    make_sdist(world.links, "srconly", "1.0")
    first = world.layer(base, "srconly")
    (one,) = first.lock["packages"]
    locked = [" ".join(["srconly==1.0", *(f"--hash={h}" for h in one["hashes"])])]
    again = world.layer(base, locked=locked)
    assert (names(again), again.lock["way"]) == (["srconly==1.0"], "inside")


def test_builds_at_once_share_the_cache(world: World, base: Below):
    for name in "abcd":
        make_wheel(world.links, f"p-{name}", "1.0", ["common"])
    make_wheel(world.links, "common", "1.0")
    jobs = [world.job(f"scratch-{name}") for name in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        layers = list(
            pool.map(
                lambda pair: world.layer(base, f"p-{pair[0]}", job=pair[1]),
                zip("abcd", jobs, strict=True),
            )
        )
    assert [names(layer)[1:] for layer in layers] == [
        [f"p-{name}==1.0"] for name in "abcd"
    ]
    assert list((world.packages / "work").iterdir()) == []


@pytest.fixture
def stuck_index() -> Iterator[tuple[str, threading.Event]]:
    """An index that takes requests and never answers."""
    asked, end = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            end.wait(60)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple", asked
    finally:
        end.set()
        server.shutdown()
        thread.join()
        server.server_close()


# Builds until it is killed.
CHILD = """
import io, sys, threading, time
from pathlib import Path
from globus_compute_apptainer.build.apptainer import Apptainer
from globus_compute_apptainer.build.python.environment import python_layer
from globus_compute_apptainer.build.inventory import from_json
from globus_compute_apptainer.build.job import Job
from globus_compute_apptainer.build.layers import Below
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.build.transcript import Transcript
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf
import json
folder, index, inventory = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = BuildConfig()
environ = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index}
job = Job(
    ImageSpec("x", "docker"), Apptainer.find(), config,
    SiteAccess.from_host(environ, config, prefix=folder), folder, folder / "log",
    Transcript(io.StringIO(), digest="x", stages=["pip"]), threading.Event(),
    deadline=time.monotonic() + 60,
)
below = Below("sha256:" + "0" * 64, Path("/x"), from_json(json.loads(inventory)))
shelf = Shelf(folder / "v2", "layers")
python_layer(job, below, ["alpha"], shelf, folder / "packages")
"""


def test_a_killed_build_leaves_no_damage(world: World, base: Below, stuck_index):
    import json

    index, asked = stuck_index
    told = json.dumps(inventory.to_json(base.inventory))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(world.folder), index, told],
        start_new_session=True,
    )
    assert asked.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    work = world.packages / "work"
    assert len(list(work.iterdir())) == 1
    make_wheel(world.links, "alpha", "1.0")
    assert names(world.layer(base, "alpha")) == ["alpha==1.0"]
    assert list(work.iterdir()) == []


def test_bytecode_of_an_image(world: World, base: Below, tmp_path: Path):
    files = {"mod/__init__.py": "a = 1\n", "mod/bad.py": "print 1\n"}
    make_wheel(world.links, "mod", "1.0", files={**files, "mod/tests/x.py": ""})
    layer = world.layer(base, "mod")
    image, target = tmp_path / "image.sif", tmp_path / "bytecode.sqfs"
    sif_with(world.job(), base.sif, [layer], image)
    env = "/.gc-apptainer/env"
    done = compile_bytecode(
        world.apptainer,
        image,
        [f"{env}/lib", "/no/such/place"],
        f"{env}/bin/python",
        target,
        tmp_path / "scratch",
        key="sha256:" + "8" * 64,
        timeout=60,
    )
    assert done
    over = ["--overlay", f"{target}:ro"]
    site = f"{env}/lib/python3.11/site-packages"
    # Python says where it took the code from.
    program = ["python3", "-v", "-c", "import mod"]
    said = world.inside(base, layer, *program, over=over)
    cached = f"{site}/mod/__pycache__/__init__.cpython-311.pyc"
    assert any("matches" in one and cached in one for one in said)
    found = world.inside(base, layer, "find", site, "-name", "*.pyc", over=over)
    assert found == [cached]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_bytecode_is_written_through_no_link(
    python_sif: Path, apptainer: Apptainer, tmp_path: Path
):
    """What the image calls its Python may be anything."""
    victim, program = tmp_path / "victim", tmp_path / "python3"
    victim.mkdir()
    place = "/.gc-apptainer-build/root"
    text = f"rm -rf {place}/.gc-apptainer; ln -s {victim} {place}/.gc-apptainer"
    program.write_text(f"#!/bin/sh\n{text}; : >{place}/x.pyc\n")
    program.chmod(0o755)
    compile_bytecode(
        apptainer,
        python_sif,
        ["/no/such/place"],
        "/usr/bin/python3",
        tmp_path / "bytecode.sqfs",
        tmp_path,
        key="sha256:" + "8" * 64,
        timeout=60,
        options=["--bind", f"{program}:/usr/bin/python3"],
    )
    assert list(victim.iterdir()) == []


def test_no_bytecode_where_there_is_nothing_to_compile(
    world: World, python_sif: Path, apptainer: Apptainer, tmp_path: Path
):
    target = tmp_path / "bytecode.sqfs"
    done = compile_bytecode(
        apptainer,
        python_sif,
        ["/no/such/place"],
        "/usr/bin/python3",
        target,
        tmp_path,
        key="sha256:" + "8" * 64,
        timeout=60,
    )
    assert (done, target.exists()) == (False, False)
