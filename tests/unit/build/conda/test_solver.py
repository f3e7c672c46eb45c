"""What the conda solver's failures mean, and what it is told of this site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer import events
from globus_compute_apptainer.build.conda import solver
from globus_compute_apptainer.build.conda.channels import Channels
from globus_compute_apptainer.build.site import SiteAccess

NOBODY = "Cannot solve the request because of: No candidates were found for nosuch >=3."
CONFLICT = """\
Cannot solve the request because of: The following packages are incompatible
├─ gamma * can be installed with any of the following options:
└─ beta * cannot be installed because there are no viable options:
"""


@pytest.mark.parametrize(
    ("kind", "words", "code", "message"),
    [
        ("SolverError", NOBODY, "package-not-found", "no conda channel has nosuch >=3"),
        ("SolverError", CONFLICT, "package-conflict", "do not go together"),
        ("GatewayError", "refused", "index-unreachable", "cannot be reached"),
        ("NoChannel", "could not find subdir", "channel-not-found", "find subdir"),
        ("InstallerError", "failed to fetch x", "index-unreachable", "fetch x"),
        ("Mismatch", "failed to fetch x: hash", "hash-mismatch", "fetch x"),
        ("Untrusted", "x has the path '../y'", "package-refused", "'../y'"),
        ("DiskFull", "os error 28", "disk-full", "the disk is full"),
        ("PanicException", "oh no", "build-failed", "oh no"),
    ],
)
def test_failures_in_words(
    make_job: Any, kind: str, words: str, code: str, message: str
) -> None:
    told = {"error": kind, "words": words, "package": ""}
    error = solver._error(make_job(), told, Channels(()), locked=False)
    assert error.code == code
    assert message in error.message
    assert error.tail == tuple(line for line in words.splitlines() if line)


@pytest.mark.parametrize(
    ("kind", "why", "code"),
    [
        ("InstallerError", "client error (404 Not Found) for url", "lock-unavailable"),
        ("InstallerError", "No such file (os error 2)", "lock-unavailable"),
        ("Mismatch", "hash mismatch", "lock-unavailable"),
        ("InstallerError", "Connection refused (os error 111)", "index-unreachable"),
    ],
)
def test_what_a_lock_names(make_job: Any, kind: str, why: str, code: str) -> None:
    told = {"error": kind, "words": f"failed to fetch x-1-0\n{why}", "package": ""}
    error = solver._error(make_job(), told, Channels(()), locked=True)
    assert error.code == code
    assert "x-1-0" in error.message


def test_the_child_gets_what_the_site_needs_and_no_more(make_job: Any) -> None:
    variables = {
        "https_proxy": "http://proxy:3128",
        "RATTLER_AUTH_FILE": "/home/me/auth.json",
        "PIP_INDEX_URL": "https://me:pw@index/simple",
    }
    site = SiteAccess(variables=variables, ca_bundle=Path("/etc/site.pem"))
    env = solver._environment(make_job(site=site))
    assert env["https_proxy"] == "http://proxy:3128"
    assert env["RATTLER_AUTH_FILE"] == "/home/me/auth.json"
    assert env["SSL_CERT_FILE"] == "/etc/site.pem"
    assert env.get("PIP_INDEX_URL") != variables["PIP_INDEX_URL"]


def test_progress_is_told_and_the_rest_is_logged(
    make_job: Any, told: list[events.Event]
) -> None:
    job = make_job()
    lines = solver._Lines(job)
    lines('@@["progress", 3, 7, "packages", "installed"]')
    lines("WARN something")
    progress = [event for event in told if isinstance(event, events.Progress)]
    assert [(p.done, p.total, p.unit) for p in progress] == [(3, 7, "packages")]
    assert list(job.transcript.tail) == ["WARN something"]
