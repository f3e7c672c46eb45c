"""Exit codes, usage, and what is imported when."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from globus_compute_apptainer import __version__, errors
from globus_compute_apptainer.cli import main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SpecError("x"), 2),
        (errors.PolicyError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.HostError("x"), 3),
        (errors.StoreError("x"), 3),
        (errors.BuildError("x"), 1),
        (errors.TaskError("x"), 1),
        (errors.ContainerError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error, code) -> None:
    assert main.exit_code(error) == code


def verb(monkeypatch, run) -> None:
    module = SimpleNamespace(run=run)
    monkeypatch.setattr(main.importlib, "import_module", lambda _name: module)


def test_a_verb_s_status_is_the_command_s(monkeypatch) -> None:
    verb(monkeypatch, lambda options: 1)
    assert main.main(["images"]) == 1


def test_an_error_goes_to_standard_error(monkeypatch, capsys) -> None:
    def run(_options: argparse.Namespace) -> int:
        raise errors.BuildError("no such package", hint="spell it right", stage="pip")

    verb(monkeypatch, run)
    assert main.main(["images"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "hint: spell it right" in shown.err
    assert main.main(["images", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err)["error"]["stage"] == "pip"


def test_a_reader_that_goes_away_is_no_fault() -> None:
    program = "from globus_compute_apptainer.cli import main, images, output\n"
    program += "images.run = lambda _: output.data('x' * 10**6) or 0\n"
    program += "raise SystemExit(main.main(['images']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_package_that_is_not_installed(monkeypatch, capsys) -> None:
    def run(_options: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    verb(monkeypatch, run)
    assert main.main(["doctor"]) == 3
    assert "globus-compute-apptainer[endpoint]" in capsys.readouterr().err


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch) -> None:
    def run(_options: argparse.Namespace) -> int:
        raise ModuleNotFoundError("x", name="globus_compute_apptainer.nothing")

    verb(monkeypatch, run)
    with pytest.raises(ModuleNotFoundError):
        main.main(["doctor"])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signals_end_a_verb_in_order(monkeypatch, number, status) -> None:
    unwound = []

    def run(_options: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            unwound.append(True)
        return 0

    verb(monkeypatch, run)
    before = signal.getsignal(signal.SIGTERM)
    assert main.main(["doctor"]) == status
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["build"],
        ["build", "{}", "--", "python"],
        ["try", "{}"],
        ["try", "{}", "--"],
        ["try", "--", "python", "f.py:f"],
        ["images", "--no-such-option"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_what_follows_the_dashes_is_the_command_s(monkeypatch) -> None:
    seen = {}
    verb(monkeypatch, lambda options: seen.update(vars(options)) or 0)
    main.main(["try", "--json", "s", "--", "python", "f.py:f", "--json", "--", "-1"])
    assert seen["command"] == ["python", "f.py:f", "--json", "--", "-1"]
    assert (seen["spec"], seen["json"]) == ("s", True)


@pytest.mark.parametrize("arguments", [["--help"], ["try", "--help"]])
def test_help_says_the_exit_codes(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes:" in text
    assert "130  interrupted" in text


PROBE = """\
import sys
from globus_compute_apptainer.cli import main
try:
    main.main(["--version"])
except SystemExit as end:
    print(end.code, *sorted(
        name for name in ("parsl", "globus_compute_sdk", "globus_compute_endpoint",
                          "yaml", "rich", "uv") if name in sys.modules))
"""


def test_the_version_costs_no_import() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [__version__, "0"]
