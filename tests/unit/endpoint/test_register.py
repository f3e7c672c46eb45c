"""The registration hook: live where it should be, and nowhere in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import globus_compute_apptainer
from globus_compute_apptainer.endpoint import register


def python(code: str) -> str:
    """Run code in a fresh interpreter of this environment; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fresh_interpreter_resolves_the_engine_by_name() -> None:
    name = python(
        "import globus_compute_endpoint.engines as e; print(e.ApptainerEngine.__name__)"
    )
    assert name == "ApptainerEngine"


def test_the_endpoints_own_dispatcher_builds_it() -> None:
    code = """
from globus_compute_endpoint.endpoint.config.dispatch import EngineDispatcher
e = EngineDispatcher.build_instance({
    "type": "ApptainerEngine", "address": "127.0.0.1",
    "provider": {"type": "LocalProvider"}, "containers": {"cache_dir": "/tmp/c"}})
print(type(e).__mro__[1].__name__, e._config.cache_dir); e.shutdown()
"""
    assert python(code) == "GlobusComputeEngine /tmp/c"


def test_the_dispatcher_reports_a_bad_block_with_its_key() -> None:
    code = """
from globus_compute_endpoint.endpoint.config.dispatch import EngineDispatcher
try:
    EngineDispatcher.build_instance({"type": "ApptainerEngine",
        "address": "127.0.0.1", "containers": {"cache_dri": "/tmp/c"}})
except ValueError as error:
    print(error)
"""
    text = python(code)
    assert "cache_dri" in text
    assert "'cache_dir'" in text


def test_nothing_heavy_is_imported_at_interpreter_start() -> None:
    code = """
import sys, json
print(json.dumps([m for m in sys.modules if m.split(".")[0] in
    ("globus_compute_apptainer", "globus_compute_endpoint", "globus_compute_sdk",
     "parsl", "typing", "importlib.util", "dataclasses")]))
"""
    loaded = set(json.loads(python(code)))
    ours = {m for m in loaded if m.startswith("globus_compute_apptainer")}
    assert ours == {
        "globus_compute_apptainer",
        "globus_compute_apptainer.endpoint",
        "globus_compute_apptainer.endpoint.register",
    }
    assert not loaded & {"parsl", "globus_compute_endpoint", "globus_compute_sdk"}


def test_importing_the_package_imports_neither_parsl_nor_the_endpoint() -> None:
    code = """
import sys, globus_compute_apptainer
print({"parsl", "globus_compute_endpoint", "globus_compute_sdk"} & set(sys.modules))
"""
    assert python(code) == "set()"


def test_the_hook_is_live_here() -> None:
    assert register.is_live()


def test_other_names_stay_unknown_and_upstreams_own_hook_is_asked() -> None:
    module = types.ModuleType("engines")
    register.install(module)
    assert not hasattr(module, "NoSuchEngine")

    asked: list[str] = []

    def inherited(name: str) -> object:
        asked.append(name)
        return name.upper()

    second = types.ModuleType("engines")
    second.__dict__["__getattr__"] = inherited
    register.install(second)
    assert second.whatever == "WHATEVER"
    assert asked == ["whatever"]


def test_uninstalling_leaves_nothing(tmp_path: Path) -> None:
    """A wheel, installed into an empty environment and uninstalled again."""
    source = Path(globus_compute_apptainer.__file__).parents[2]
    env, wheels = tmp_path / "env", tmp_path / "wheels"
    uv = [sys.executable, "-m", "uv"]

    def run(*argv: object) -> None:
        done = subprocess.run(
            [*map(str, argv)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    def files() -> set[str]:
        found = {str(p.relative_to(env)) for p in env.rglob("*")}
        return {p for p in found if "__pycache__" not in p and p != ".lock"}  # uv's

    run(*uv, "venv", "--python", sys.executable, env)
    before = files()
    run(*uv, "build", "--wheel", "--no-build-isolation", "-o", wheels, source)
    (wheel,) = wheels.glob("*.whl")
    python_bin = env / "bin" / "python"
    run(*uv, "pip", "install", "--python", python_bin, "--no-deps", wheel)
    assert any(name.endswith("globus_compute_apptainer.pth") for name in files())
    live = "from globus_compute_apptainer.endpoint.register import is_live as l;"
    run(python_bin, "-c", live + "assert l()")
    run(*uv, "pip", "uninstall", "--python", python_bin, "globus-compute-apptainer")
    assert files() == before
    run(python_bin, "-W", "error", "-c", "pass")
