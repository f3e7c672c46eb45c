"""What a check found, and how a list of checks is run.

Pure but for the checks themselves. A check is a function of a :class:`~.host.Host`
and the :class:`~.inputs.Settings`; one that crashes is a finding too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from globus_compute_apptainer.cli.host import Host
from globus_compute_apptainer.cli.inputs import Settings
from globus_compute_apptainer.errors import ContainerError

Level = Literal["ok", "warn", "fail"]
_AT_ONCE = 8


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    :param level: ``fail`` containers will not work; ``warn`` something will be slow,
        or some specs will fail; ``ok``
    :param found: what was found
    :param fix: what to do about it; empty for ``ok``
    :param name: the check's; set by :func:`examine`
    """

    level: Level
    found: str
    fix: str = ""
    name: str = ""


Check = Callable[[Host, Settings], Finding]


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def warn(found: str, fix: str) -> Finding:
    """Slow, or not for every spec."""
    return Finding("warn", found, fix)


def fail(found: str, fix: str) -> Finding:
    """It will not work."""
    return Finding("fail", found, fix)


def examine(
    checks: Sequence[tuple[str, Check]], host: Host, settings: Settings
) -> list[Finding]:
    """Every check's finding, in order; never raises."""

    def one(named: tuple[str, Check]) -> Finding:
        name, check = named
        return dataclasses.replace(_attempt(check, host, settings), name=name)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(one, checks))


def _attempt(check: Check, host: Host, settings: Settings) -> Finding:
    try:
        return check(host, settings)
    except ContainerError as error:
        return fail(error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - a crash is a finding
        return fail(
            f"the check failed: {type(error).__name__}: {error}",
            "if this machine is as it should be, please report this as a bug",
        )
