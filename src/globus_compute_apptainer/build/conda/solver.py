"""The conda solver and installer, asked in a process of its own.

Runs in the endpoint process; what it asks is :mod:`.child`. Here are its
environment, its progress, and what its failures mean.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from globus_compute_apptainer.build.conda.channels import Channels
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

CHILD: Final = "globus_compute_apptainer.build.conda.child"

_PROXIES: Final = re.compile(r"(https?|all|no)_proxy\Z", re.IGNORECASE)
# What rattler itself reads: credentials, and their place.
_PASSED: Final = ("RATTLER_AUTH_FILE", "NETRC")
_CHECK: Final = "check the names and versions in `conda`, and its channels"
_CAUSES: Final[Mapping[str, tuple[str, str, str]]] = {
    "SolverError": (
        "package-conflict",
        "the conda packages asked for do not go together",
        "loosen the versions in `conda`",
    ),
    "NoChannel": (
        "channel-not-found",
        "there is no such conda channel, or it has no index",
        "check the names of the channels",
    ),
    "GatewayError": (
        "index-unreachable",
        "a conda channel cannot be reached",
        "check this site's proxy settings and CA bundle, or name a mirror as "
        "`build.conda_mirrors`",
    ),
    "InstallerError": (
        "index-unreachable",
        "a conda package cannot be fetched",
        "try again later; the channel or a mirror may be out of step",
    ),
    "Mismatch": (
        "hash-mismatch",
        "a conda package is not the file that its channel describes",
        "try again later; the channel or a mirror may be out of step",
    ),
    "Untrusted": (
        "package-refused",
        "a conda package names files outside of itself",
        "it is damaged or malicious; tell those who run the channel",
    ),
    "DiskFull": (
        "disk-full",
        "the disk is full",
        "free some room, or name larger directories as `build.tmp_dir` and "
        "`build.package_cache`",
    ),
}

_GONE: Final = re.compile(r"\((404|410)\b|os error 2\b|\[Errno 2\]")
# Whose first line names what is concerned.
_NAMING: Final = ("NoChannel", "InstallerError", "Mismatch", "Untrusted")


def ask(
    job: Job,
    request: Mapping[str, Any],
    channels: Channels,
    shown: str,
    *,
    locked: bool = False,
) -> dict[str, Any]:
    """Have the child do it.

    :raises BuildError: it failed, in its own words
    """
    if find_spec("rattler") is None:
        raise job.error(
            "conda packages cannot be installed: py-rattler is not installed here",
            code="endpoint-extra-missing",
            hint="the endpoint's owner must install globus-compute-apptainer[endpoint]",
        )
    with tempfile.TemporaryDirectory(prefix="rattler-", dir=job.scratch) as folder:
        asked, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.touch(mode=0o600)  # URLs of mirrors may hold credentials
        asked.write_text(json.dumps(request), encoding="utf-8")
        argv = [sys.executable, "-m", CHILD, str(asked), str(answer)]
        ended = job.attempt(
            argv, env=_environment(job), cwd=folder, shown=shown, on_line=_Lines(job)
        )
        if not answer.exists():
            raise job.error(
                f"{shown} ended without an answer (status {ended.returncode})"
            )
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" not in told:
        return told
    raise _error(job, told, channels, locked=locked)


def _environment(job: Job) -> dict[str, str]:
    """For the child: the site's proxies, certificates and credentials."""
    site = job.site
    passed = {n: v for n, v in site.variables.items() if _PROXIES.match(n)}
    passed |= {n: site.variables[n] for n in _PASSED if n in site.variables}
    if site.ca_bundle is not None:
        passed["SSL_CERT_FILE"] = str(site.ca_bundle)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**job.apptainer.environment(), **passed, "PYTHONPATH": path}


class _Lines:
    """Takes the child's output: progress is told, the rest is logged."""

    def __init__(self, job: Job) -> None:
        self._transcript = job.transcript

    def __call__(self, line: str) -> None:
        if not line.startswith("@@"):
            self._transcript.line(line)
            return
        _, done, total, unit, what = json.loads(line[2:])
        self._transcript.progress(done, total, unit, what)


def _error(
    job: Job, told: Mapping[str, str], channels: Channels, *, locked: bool
) -> BuildError:
    """The child's failure: the cause in one sentence, its words as the output."""
    words = channels.told(told["words"])
    kind = told["error"]
    code, message, hint = _CAUSES.get(kind, ("build-failed", "", ""))
    if kind == "SolverError" and (missing := _missing(words)):
        code, message, hint = "package-not-found", missing, _CHECK
    elif locked and (kind == "Mismatch" or _GONE.search(words)):
        code, hint = "lock-unavailable", "build it without the lock"
        message = "a conda package of the lock can no longer be had"
    for line in words.splitlines():
        job.transcript.line(line)
    first = next(iter(words.splitlines()), "")
    detail = f": {first}" if kind in _NAMING else ""
    return job.error(f"{message or first}{detail}", code=code, hint=hint)


def _missing(words: str) -> str:
    """For a solver's explanation that is no more than a name nobody has."""
    found = re.fullmatch(
        r"Cannot solve the request because of: No candidates were found for (.*)\.\s*",
        words,
    )
    return f"no conda channel has {found[1].removesuffix(' *')}" if found else ""
