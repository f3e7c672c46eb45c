"""ShellFunctions in images without Python: as on the stock engine, and contained."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from globus_compute_sdk import MPIFunction, ShellFunction
from globus_compute_sdk.sdk.shell_function import ShellResult
from globus_compute_sdk.serialize import AllCodeStrategies, DillCode, JSONData

if TYPE_CHECKING:
    from .conftest import Inside

pytestmark = pytest.mark.apptainer

DEADLINE_SECONDS = 120
JSON = "globus_compute_sdk.serialize.JSONData"
DILL = "globus_compute_sdk.serialize.DillDataBase64"


@pytest.fixture
def bare(inside: Inside, nopython_sif: Path) -> Inside:
    """An image that has ``/bin/bash`` and no Python."""
    image = {"image": str(nopython_sif), "size": nopython_sif.stat().st_size}
    return inside.with_order(**image, python=None, python_version=None)


@pytest.fixture
def run(bare: Inside, packed, value_of) -> Callable[..., Any]:
    """``run("command", a=1)``: the result of a ShellFunction, with what it is given."""

    def run(command: str | ShellFunction, on: Inside = bare, **kwargs: Any) -> Any:
        function = ShellFunction(command) if isinstance(command, str) else command
        return value_of(on.message(*packed(function, code=DillCode(), **kwargs)))

    return run


@pytest.fixture
def image_of(bare: Inside, tmp_path: Path) -> Callable[..., Inside]:
    """``image_of(root)``: an image of a folder, as one file system."""

    def image_of(root: Path) -> Inside:
        file = tmp_path / "root.sqfs"
        argv = ["mksquashfs", str(root), str(file), "-quiet", "-all-root"]
        subprocess.run(argv, check=True, capture_output=True, timeout=120)
        return bare.with_order(image=str(file), size=file.stat().st_size)

    return image_of


SAME = {
    "arguments": (
        ShellFunction("echo {a} '{b[0]}' {c:>5}"),
        {"a": 1, "b": "x", "c": 2},
    ),
    "plain values": (ShellFunction("echo {a} {b}"), {"a": Path("/x"), "b": {1, 2}}),
    "both outputs": (ShellFunction("echo out; echo err >&2"), {}),
    "failure": (ShellFunction("echo no; exit 3"), {}),
    "signal": (ShellFunction("echo on; kill -9 $$"), {}),
    "unknown program": (ShellFunction("no-such-program-here"), {}),
    "bash": (ShellFunction("x=(a b); echo $0 ${{x[1]}} ${{BASH_VERSION%%.*}}"), {}),
    "input": (ShellFunction("cat; read -r x; echo $?"), {}),
    "snippets": (ShellFunction("seq 1 50; seq 50 99 >&2", snippet_lines=3), {}),
    "files": (ShellFunction("echo a; echo b >&2", stdout="d/o", stderr="e"), {}),
    "one file": (ShellFunction("echo a; echo b >&2", stdout="o", stderr="o"), {}),
    "dictionary": (ShellFunction("echo x", return_dict=True), {}),
    "own walltime": (ShellFunction("sleep 9", walltime=0.7), {}),
    "long walltime": (ShellFunction("echo x", walltime=300), {}),
    "mpi": (MPIFunction("echo {n}"), {"n": 4}),
    "missing argument": (ShellFunction("echo {a}"), {"b": 1}),
    "not text": (ShellFunction("printf '\\377'"), {}),
    "unicode": (ShellFunction("printf '{x}'"), {"x": "ünï\U0001f600"}),
    "percent and braces": (ShellFunction("echo %s '{{}}' \"$HOME\"x | tail -c2"), {}),
    "empty": (ShellFunction(""), {}),
    "long": (ShellFunction("true " + "x" * 100_000 + "; echo end"), {}),
}


def facts(result: Any, value_of) -> Any:
    if result.is_error:
        return result.data.splitlines()[-1], result.error_details
    value = value_of(result)
    return vars(value) if isinstance(value, ShellResult) else value


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "no sandbox"])
def test_the_outcome_is_that_of_the_stock_engine(
    case: str, sandbox: bool, bare: Inside, stock, packed, value_of, tmp_path: Path
) -> None:
    function, kwargs = SAME[case]
    message = packed(function, code=DillCode(), **kwargs)
    sides = {"ours": bare.message, "stock": stock}
    seen, files = {}, {}
    for side, execute in sides.items():
        folder = tmp_path / side
        result = execute(*message, run_dir=folder, run_in_sandbox=sandbox)
        seen[side] = facts(result, value_of)
        found = (path for path in folder.rglob("*") if path.is_file())
        files[side] = {
            str(path.parent.relative_to(folder)) + path.suffix: path.read_bytes()
            for path in found
        }
    assert seen["ours"] == seen["stock"]
    assert files["ours"] == files["stock"]


def test_limits_and_serializers_are_those_of_the_stock_engine(
    bare: Inside, stock, packed, value_of
) -> None:
    function = ShellFunction("seq 1 500", return_dict=True)
    message = packed(function, code=DillCode())
    for options in (
        {"result_size_limit": 1000},
        {"result_serializers": [JSON]},
        {"task_deserializers": [JSON, "globus_compute_sdk.serialize.PureSourceDill"]},
        {"task_deserializers": [DILL, "globus_compute_sdk.serialize.DillCode"]},
    ):
        ours, theirs = (side(*message, **options) for side in (bare.message, stock))
        assert facts(ours, value_of) == facts(theirs, value_of), options
        assert ours.data[:3] == theirs.data[:3]


def test_strategies_with_alternatives(bare: Inside, packed, value_of) -> None:
    function = ShellFunction("echo {a}")
    for strategy in (AllCodeStrategies(), DillCode()):
        result = value_of(bare.message(*packed(function, code=strategy, a="x")))
        assert (result.stdout, result.returncode) == ("x\n", 0)


def test_details_are_those_of_other_tasks(bare: Inside, packed) -> None:
    result = bare.message(*packed(ShellFunction("true"), code=DillCode()))
    assert result.details["container"]["base"] == bare.order.base
    assert {"os", "python_version", "dill_version"} <= result.details.keys()


def python_function():
    return 1


class Own(ShellFunction):
    pass


class Evil:
    """Reading its pickle makes a file, where names are looked up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        pass

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_python_is_refused_in_words_and_not_run(
    bare: Inside, packed, tmp_path: Path
) -> None:
    evil = tmp_path / "evil"
    shell = ShellFunction("echo {a}")
    for message in (
        packed(python_function),
        packed(python_function, code=DillCode()),
        packed(python_function, code=AllCodeStrategies()),
        packed(Evil(evil), code=DillCode()),
        packed(shell, a=Evil(evil), code=DillCode()),
        packed(shell, a=lambda: 1, code=DillCode()),
        packed(ShellFunction, "x", code=DillCode()),
    ):
        result = bare.message(*message)
        assert result.error_details.code == "no-python", result.data
        assert "base_image" in result.data and "ShellFunction" in result.data
    assert not evil.exists()


def test_what_is_no_task_fails_as_in_the_stock_engine(
    bare: Inside, stock, packed, value_of
) -> None:
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Task

    _, task_id = packed(python_function)
    for text in ("", "nonsense", "6\n01\ngAQ6\n00\ngAQ6\n00\ngAQ"):
        body = messagepack.pack(Task(task_id=task_id, task_buffer=text))
        ours, theirs = bare.message(body, task_id), stock(body, task_id)
        assert facts(ours, value_of) == facts(theirs, value_of)


def test_environment_and_folder(run, bare: Inside, packed, value_of, monkeypatch):
    monkeypatch.setenv("GC_FOO", 'it\'s "so", $HOME')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    monkeypatch.setenv("MY_SECRET", "x")
    spec = bare.with_order(env=(("OWN", "a,b\nc"), ("PATH", "/usr/bin:/bin")))
    message, task_id = packed(ShellFunction("pwd; env -0 | cat -v"), code=DillCode())
    result = value_of(spec.message(message, task_id, run_in_sandbox=True))
    folder, _, variables = result.stdout.partition("\n")
    seen = dict(item.partition("=")[::2] for item in variables.split("^@"))
    assert folder == f"{spec.run_dir.resolve()}/{task_id}"
    assert seen["GC_TASK_SANDBOX_DIR"] == folder
    assert seen["GC_TASK_UUID"] == str(task_id)
    assert seen["GC_FOO"] == 'it\'s "so", $HOME'
    assert (seen["SLURM_JOB_ID"], seen["OWN"]) == ("7", "a,b\nc")
    assert not {"TMPDIR", "MY_SECRET", "VIRTUAL_ENV"} & seen.keys()


def test_bind_gpu_and_options(run, bare: Inside, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = bare.with_order(binds=(f"{tmp_path}:/given:ro",))
    assert run("ls /given", on=given).stdout == "file\n"
    for gpu in ("nvidia", "rocm"):  # starts where there is no such device, too
        assert run("echo here", on=bare.with_order(gpu=gpu)).stdout == "here\n"
    root = "grep ' / ' /proc/mounts | cut -d' ' -f3"
    assert run(root, on=bare.with_order(options=("--writable-tmpfs",))).returncode == 0
    assert run("touch /x").returncode == 1
    strange = bare.with_order(env=(("PATH", "/nowhere"), ("SHELL", "/no")))
    assert run("echo $PATH", on=strange).stdout == "/nowhere\n"


def test_an_image_whose_only_shell_is_sh(run, bare: Inside) -> None:
    """What cannot be executed stands in for a bash that is not there."""
    without = bare.with_order(binds=("/dev/null:/bin/bash", "/dev/null:/usr/bin/bash"))
    result = run("echo $0 ${{BASH_VERSION-none}}", on=without)
    assert result.stdout == "/bin/sh none\n"


def test_an_image_of_nothing_but_sh(run, image_of, tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_root(root)
    shell = Path(shutil.which("dash") or "/bin/sh").resolve()
    said = subprocess.run(["ldd", str(shell)], capture_output=True, text=True).stdout
    needed = [Path(word) for word in said.split() if word.startswith("/")]
    for file, place in [(shell, "bin/sh"), *((f, str(f)[1:]) for f in needed)]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.resolve(), root / place)
    result = run("read -r x </proc/self/comm; echo $0 $x", on=image_of(root))
    assert (result.stdout, result.returncode) == ("/bin/sh sh\n", 0), result


def make_root(root: Path) -> None:
    for name in ("dev", "proc", "sys", "tmp", "etc", "usr/bin"):
        (root / name).mkdir(parents=True)


def test_an_image_without_any_shell(bare: Inside, image_of, packed, tmp_path) -> None:
    root = tmp_path / "root"
    make_root(root)
    result = image_of(root).message(*packed(ShellFunction("true"), code=DillCode()))
    assert result.error_details.code == "no-shell", result.data
    assert "base_image" in result.data


def test_a_layer_that_is_missing(bare: Inside, packed) -> None:
    blind = bare.with_order(markers=("/.gc-apptainer/layers/none",))
    result = blind.message(*packed(ShellFunction("true"), code=DillCode()))
    assert result.error_details.code == "overlay-unavailable", result.data


def test_an_image_that_does_not_start(bare: Inside, packed, tmp_path: Path) -> None:
    image = tmp_path / "broken.sif"
    image.write_bytes(b"x" * 4096)
    broken = bare.with_order(image=str(image), size=4096)
    result = broken.message(*packed(ShellFunction("true"), code=DillCode()))
    assert result.error_details.code == "container-start-failed", result.data
    assert "damaged" in result.data


def running(token: str) -> set[int]:
    """The living processes that have the token among their arguments."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token in (folder / "cmdline").read_text("utf-8", "replace"):
                found.add(int(folder.name))
        except OSError:
            continue
    return found - {os.getpid()}


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def named(bare: Inside, tmp_path: Path) -> tuple[Inside, str]:
    """The image by a path of this test's own, which Apptainer's processes show."""
    link = tmp_path / f"image-{os.getpid()}.sif"
    link.symlink_to(bare.order.image)
    return bare.with_order(image=str(link)), str(link)


NAP = f"sleep 1{os.getpid():07d}"  # nobody else's
LEAVE = f"""
setsid {NAP}1 >/dev/null 2>&1 &
{NAP}2 &
( trap '' TERM HUP; {NAP}3 ) &
echo left
"""


def asleep(number: str = "") -> set[int]:
    return running((NAP + number).replace(" ", "\0"))


def test_nothing_that_a_command_leaves_behind_stays(run, named) -> None:
    on, token = named
    assert run(LEAVE, on=on).stdout == "left\n"
    assert not running(token)
    assert not asleep()


@pytest.mark.parametrize("option", ["--pid", "--containall"])
def test_containers_with_more_walls(option: str, run, named) -> None:
    """In its own namespace of process numbers, the shell's says nothing outside."""
    on, token = named
    walled = on.with_order(options=(option,))
    assert run(LEAVE, on=walled).stdout == "left\n"
    assert not running(token)
    assert not asleep()


def test_the_walltime_ends_what_runs(run, named) -> None:
    on, token = named
    function = ShellFunction(f"{LEAVE}\n{NAP}4", walltime=2)
    assert run(function, on=on).returncode == 124
    assert not running(token)
    assert not asleep()


def test_the_time_limit_for_tasks(named, packed, monkeypatch) -> None:
    monkeypatch.setenv("GC_TASK_TIMEOUT", "1.5")
    on, token = named
    function = ShellFunction(f"{NAP}5", walltime=3600)
    result = on.message(*packed(function, code=DillCode()))
    assert result.data.splitlines()[-1] == "parsl.app.errors.AppTimeout"
    assert result.error_details.code == "RemoteExecutionError"
    assert not running(token)


WORKER = """
import pickle, sys
from globus_compute_apptainer.worker import runner
terms, (message, task_id) = pickle.load(sys.stdin.buffer)
runner.run(message, str(task_id), terms)
"""


@pytest.mark.parametrize("victim", ["worker", "guard"])
def test_nothing_stays_when_a_process_of_ours_is_killed(
    victim: str, named, packed, tmp_path: Path
) -> None:
    on, token = named
    started = tmp_path / "run" / "started"
    command = f"setsid {NAP}6 & touch {started}; {NAP}7"
    message = packed(ShellFunction(command), code=DillCode())
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.write(pickle.dumps((on.told(run_dir=started.parent), message)))
    worker.stdin.close()
    until(started.exists)
    (guard,) = (p for p in running("shellguard.py") if parent(p) == worker.pid)
    os.kill(worker.pid if victim == "worker" else guard, signal.SIGKILL)
    until(lambda: not running(token))
    until(lambda: not asleep("7"))
    if victim == "worker":  # without a guard, what left the session may stay
        until(lambda: not asleep("6"))
    for pid in asleep("6"):
        os.kill(pid, signal.SIGKILL)
    assert worker.wait(DEADLINE_SECONDS) == (-9 if victim == "worker" else 0)


def parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def test_json_arguments(bare: Inside, packed, value_of) -> None:
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Task
    from globus_compute_sdk.serialize import ComputeSerializer

    serializer = ComputeSerializer(DillCode(), JSONData())
    parts = [ShellFunction("echo {a}"), [], {"a": 1.5}]
    buffers = [serializer.serialize(part) for part in parts]
    _, task_id = packed(python_function)
    text = serializer.pack_buffers(buffers)
    body = messagepack.pack(Task(task_id=task_id, task_buffer=text))
    assert value_of(bare.message(body, task_id)).stdout == "1.5\n"
