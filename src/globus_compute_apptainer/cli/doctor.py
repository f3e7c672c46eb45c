"""``gc-apptainer doctor``: what this machine lacks, and what to do about it.

Runs in a person's shell; changes nothing. The checks are in :mod:`.checks`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from globus_compute_apptainer.cli import inputs, output
from globus_compute_apptainer.cli.checks import CHECKS, DEEP
from globus_compute_apptainer.cli.findings import Finding, examine
from globus_compute_apptainer.cli.host import Host

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def run(options: argparse.Namespace) -> int:
    """The verb: 0 if nothing failed, 3 otherwise."""
    settings = inputs.settings(options.config, options.cache_dir)
    host = Host(settings.config.apptainer)
    checks = (*CHECKS, *DEEP) if options.deep else CHECKS
    findings = examine(checks, host, settings)
    if options.json:
        output.data([{"name": f.name, **dataclasses.asdict(f)} for f in findings])
    else:
        _show(findings)
    return 3 if any(finding.level == "fail" for finding in findings) else 0


def _show(findings: Sequence[Finding]) -> None:
    rows = [
        (
            Text(finding.level, style=_STYLES[finding.level]),
            finding.name,
            _what(finding),
        )
        for finding in findings
    ]
    output.table(("", "check", "found"), rows)
    count = Counter(finding.level for finding in findings)
    print(f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed")


def _what(finding: Finding) -> Text:
    if finding.level == "ok":
        return Text(finding.found)
    return Text.assemble(finding.found, "\n", ("→ ", "bold"), finding.fix)
