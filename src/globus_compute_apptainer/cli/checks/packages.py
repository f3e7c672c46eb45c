"""Is this Python environment one in which an endpoint can use the engine?"""

from __future__ import annotations

import sys
from pathlib import Path

from globus_compute_apptainer.cli.findings import Finding, fail, ok, warn
from globus_compute_apptainer.cli.host import Host
from globus_compute_apptainer.cli.inputs import Settings

PROGRAM = "globus-compute-endpoint"
_ENGINE = "globus_compute_apptainer.endpoint.engine"
_ASK = (
    "from globus_compute_endpoint import engines;"
    "print(getattr(engines, 'ApptainerEngine').__module__)"
)
_REINSTALL = "pip install --force-reinstall --no-deps globus-compute-apptainer"


def hook(host: Host, _settings: Settings) -> Finding:
    """Whether a new interpreter would know the engine, as an endpoint needs it."""
    ran = host.run([sys.executable, "-c", _ASK])
    lines = ran.output.strip().splitlines() or ["no output"]
    if ran.status == 0 and lines[-1] == _ENGINE:
        return ok("a new interpreter finds `type: ApptainerEngine`")
    return fail(f"a new interpreter does not find the engine: {lines[-1]}", _REINSTALL)


def endpoint_program(host: Host, _settings: Settings) -> Finding:
    """Whether the program that endpoints start by name is this environment's."""
    own = host.prefix / "bin"
    found = host.program(PROGRAM)
    if found is None:
        if host.program(PROGRAM, own) is None:
            return fail(
                f"{PROGRAM} is not installed",
                "pip install 'globus-compute-apptainer[endpoint]'",
            )
        return warn(
            f"{PROGRAM} is not on PATH, and an endpoint starts its parts through it",
            f"export PATH={own}:$PATH before the endpoint is started",
        )
    if found.resolve().parent != own.resolve():
        return warn(
            f"{found} comes first on PATH, but this environment is {host.prefix}",
            f"start the endpoint of this environment: export PATH={own}:$PATH",
        )
    return ok(str(found))


def upstream_versions(_host: Host, _settings: Settings) -> Finding:
    """Whether the endpoint and Parsl are versions that this one was tried with."""
    from globus_compute_apptainer.endpoint import upstream  # noqa: PLC0415 - slow

    if problem := upstream.outside_window():
        return warn(problem, "pip install -U 'globus-compute-apptainer[endpoint]'")
    return ok("within the supported window")


def uv(host: Host, _settings: Settings) -> Finding:
    """Whether builds can install Python packages."""
    found = host.program("uv", host.prefix / "bin")
    if found is None:
        return fail(
            "not installed; no Python packages can be put into images",
            "pip install uv, in the endpoint's environment",
        )
    ran = host.run([str(found), "--version"])
    if ran.status != 0:
        return fail(f"{found} does not run: {ran.output.strip()}", "pip install -U uv")
    return ok(f"{ran.output.strip()} at {Path(found)}")


def git(host: Host, _settings: Settings) -> Finding:
    """Whether payloads can come from repositories."""
    found = host.program("git")
    if found is None:
        return warn(
            "not installed; a `payload_url` of a git repository cannot be fetched",
            "install the package git",
        )
    return ok(str(found))
