"""Upstream's pid file, and whether the process that wrote it is dead.

Runs in the endpoint process: :func:`claim` when the engine starts,
:func:`remove_if_dead` when it is made, which is before upstream looks at the file.

A user endpoint that is killed leaves ``daemon.pid``. Upstream refuses to start another
one while the file is younger than three heartbeats (``cli.py``): a process id does not
say of which machine it is. ``daemon.owner``, beside it, does.

Guarantees: a pid file is removed only where the process that wrote it is proven dead:
on this host, since this boot, in this process-id namespace.

Non-guarantees: two starts of one endpoint at the same moment are not kept apart any
better than upstream does; its core endpoint starts one at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer import owners

log = logging.getLogger(__name__)

PID_FILE: Final = "daemon.pid"
OWNER_FILE: Final = "daemon.owner"
#: Set by upstream's `_start-user-endpoint` before it loads the configuration.
DIRECTORY_VARIABLE: Final = "GLOBUS_COMPUTE_ENDPOINT_DIR"


def claim(directory: Path) -> None:
    """Write down who this process is; does not raise."""
    pid = os.getpid()
    host, boot, namespace = owners.machine()
    owner = {
        "host": host,
        "boot": boot,
        "namespace": namespace,
        "pid": pid,
        "start": owners.start_time(pid),
    }
    new = directory / f".{OWNER_FILE}"
    try:
        new.write_text(json.dumps(owner))
        new.rename(directory / OWNER_FILE)
    except OSError as error:
        log.warning("%s cannot be written: %s", directory / OWNER_FILE, error)


def remove_if_dead(environ: Mapping[str, str]) -> bool:
    """Remove this endpoint's pid file if its owner is proven dead; does not raise.

    :param environ: the process environment, which names the endpoint's directory
    :returns: whether it was removed
    """
    named = environ.get(DIRECTORY_VARIABLE)
    if not named:
        return False
    path = Path(named) / PID_FILE
    pid = _pid(path)
    if pid is None or not _is_dead(pid, _owner(path.with_name(OWNER_FILE))):
        return False
    if _pid(path) != pid:
        return False
    with contextlib.suppress(OSError):
        path.unlink()
        log.warning(
            "process %d of this endpoint is dead and left %s, which is removed",
            pid,
            path,
        )
        return True
    return False


def _is_dead(pid: int, owner: Mapping[str, Any]) -> bool:
    if owner.get("pid") != pid:
        return False
    here = owners.machine()
    if (owner.get("host"), owner.get("boot"), owner.get("namespace")) != here:
        return False
    start = owner.get("start")
    return isinstance(start, int) and start > 0 and owners.start_time(pid) != start


def _pid(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _owner(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
