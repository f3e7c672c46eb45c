"""What a task finds in its container, and what it cannot break there."""

from __future__ import annotations

import os
import time

import pytest

pytestmark = pytest.mark.apptainer


def pid():
    import os

    return os.getpid()


def environment():
    import os

    return dict(os.environ)


def change_everything():
    import os
    import signal
    import sys

    os.chdir("/")
    os.environ["GC_TASK_UUID"] = "forged"
    os.umask(0o077)
    sys.path.insert(0, "/nowhere")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def misuse(how):
    import os
    import sys

    if how == "print":
        for n in range(100_000):
            print("line", n, flush=False)
    elif how == "read":
        return sys.stdin.read(), os.read(0, 10)
    elif how == "write":
        os.write(1, b"raw output\n" * 1000)
    elif how == "close":
        os.close(0)
        os.close(1)
        os.close(2)
    elif how == "close objects":
        sys.stdout.close()
        sys.stderr.close()
    elif how == "replace":
        sys.stdout = None
        sys.stderr = "nonsense"
    elif how == "close others":
        os.closerange(3, 100)
    return how


def print_to(text):
    import sys

    print(text)
    print(text, file=sys.stderr)


def test_one_process_for_many_tasks(inside):
    assert len({inside.value(pid) for _ in range(5)}) == 1


def test_worker_keeps_its_folder_and_environment(inside):
    before = os.getcwd(), dict(os.environ)
    inside.value(change_everything)
    inside.value(environment)
    assert (os.getcwd(), dict(os.environ)) == before


def test_task_does_not_change_the_place_of_the_next(inside):
    inside.value(change_everything)
    found = inside.value(environment)
    assert found["GC_TASK_UUID"] != "forged"
    assert inside.value(os.getcwd) == str(inside.run_dir.resolve())


@pytest.mark.parametrize(
    "how",
    ["print", "read", "write", "close", "close objects", "replace", "close others"],
)
def test_misuse_of_streams(inside, how):
    before = inside.value(pid)
    expected = ("", b"") if how == "read" else how
    assert inside.value(misuse, how) == expected
    inside.value(print_to, "still here")
    assert inside.value(pid) == before


def test_prints_reach_the_log_of_the_worker(inside, capfd):
    inside.value(print_to, "a remarkable line")
    seen = ""
    deadline = time.monotonic() + 30
    while seen.count("a remarkable line") < 2:  # a thread copies them
        assert time.monotonic() < deadline, seen
        seen += capfd.readouterr().err


SECRETS = (
    *("GLOBUS_COMPUTE_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_ID", "MY_TOKEN"),
    *("SLURM_JWT", "GC_TOKEN", "AWS_SECRET_ACCESS_KEY", "PBS_JOBCOOKIE", "OTHER"),
    *("APPTAINERENV_LEAK", "SINGULARITYENV_LEAK"),
)


PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")


def test_environment_is_clean(inside, monkeypatch):
    secrets = dict.fromkeys(SECRETS, "secret-value")
    host = {
        "PYTHONPATH": "/host/path",
        "VIRTUAL_ENV": "/host/path",
        "LD_LIBRARY_PATH": "/host/path",
        "PATH": os.environ["PATH"] + ":/host/path",
        "PYTHONSTARTUP": "/host/path",
    }
    passed = {
        "CUDA_VISIBLE_DEVICES": "3",
        "OMP_NUM_THREADS": "2",
        "PARSL_WORKER_RANK": "1",
        "SLURM_JOB_ID": "77",
        "GC_ANYTHING": "a,b='c' \n\"d\" $HOME `x`",
    }
    secrets |= dict.fromkeys(PROXIES, "http://me:secret-value@proxy:3128")
    by_apptainer = {"ftp_proxy": "http://proxy:3128", "TERM": "vt100"}
    for name, value in (secrets | host | passed | by_apptainer).items():
        monkeypatch.setenv(name, value)
    fresh = inside.with_order(env=(("FRESH", "yes"),))
    found = fresh.value(environment)
    assert (passed | by_apptainer).items() <= found.items()
    assert not [v for v in found.values() if "secret-value" in v]
    assert not secrets.keys() & found.keys()
    assert not [v for v in found.values() if "/host/path" in v]
    assert found["PYTHONNOUSERSITE"] == "1"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = fresh.value(environment)
    assert found["CUDA_VISIBLE_DEVICES"] == "4"
    assert "OMP_NUM_THREADS" not in found


def test_spec_environment_wins(inside, monkeypatch):
    awkward = "comma, 'quote' \"double\" $HOME `id` \\ \n line=2 \u00fc"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    spec = inside.with_order(env=(("OMP_NUM_THREADS", "8"), ("AWKWARD", awkward)))
    found = spec.value(environment)
    assert found["OMP_NUM_THREADS"] == "8"
    assert found["AWKWARD"] == awkward


def test_spec_python_path_is_honoured(inside):
    def import_it():
        import from_the_spec

        return from_the_spec.VALUE

    folder = inside.run_dir / "modules"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "from_the_spec.py").write_text("VALUE = 5\n")
    spec = inside.with_order(env=(("PYTHONPATH", str(folder)),))
    assert spec.value(import_it) == 5


@pytest.mark.parametrize("exists", [True, False])
def test_temporary_folder_only_if_it_is_there(inside, monkeypatch, exists):
    folder = inside.run_dir / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder if exists else "/no/such/folder"))
    found = inside.value(environment)
    assert found.get("TMPDIR") == (str(folder) if exists else None)


def test_main_module_belongs_to_the_task(inside):
    def main():
        import sys

        main = sys.modules["__main__"]
        return sorted(n for n in vars(main) if not n.startswith("__")), sys.argv[1:]

    assert inside.value(main) == ([], [])


def test_multiprocessing_works(inside):
    def square():
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    def spawned():
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(abs, [-4])

    assert inside.value(square) == [1, 2, 3]
    assert inside.value(spawned) == [4]


def test_run_folder_is_shared_with_the_host(inside):
    def write():
        import pathlib

        pathlib.Path("written-inside").write_text("yes")

    inside.value(write)
    assert (inside.run_dir / "written-inside").read_text() == "yes"


def test_run_folder_with_awkward_name(inside, tmp_path):
    inside.run_dir = tmp_path / "a b,c:d'e"
    assert inside.value(os.getcwd) == str(inside.run_dir)


def test_bound_packages_cannot_be_written(inside):
    def read_only():
        import os

        import globus_compute_sdk.serialize as bound

        return bool(os.statvfs(bound.__file__).f_flag & os.ST_RDONLY)

    assert inside.value(read_only)


def test_sdk_names_without_the_sdk(inside):
    def names():
        import globus_compute_sdk
        from globus_compute_sdk import MPIFunction, ShellFunction, ShellResult

        return (
            globus_compute_sdk.__version__,
            *(c.__name__ for c in (MPIFunction, ShellFunction, ShellResult)),
            hasattr(globus_compute_sdk, "nonsense"),
        )

    version, *rest = inside.value(names)
    assert rest == ["MPIFunction", "ShellFunction", "ShellResult", False]
    assert version == inside.result(names).details["globus_compute_sdk_version"]
