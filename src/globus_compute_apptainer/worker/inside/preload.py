"""Modules that are imported once, before children are forked.

Runs in the zygote as it starts. Imports happen in a forked process, which becomes the
zygote if all is well, while its parent does nothing but wait for its end. If an import
ends the process or starts threads, which do not survive a fork, another process is
forked that leaves this module out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
from typing import Any, Dict, List, Optional

PR_SET_PDEATHSIG = 1


def load(names: List[str]) -> Dict[str, str]:
    """Import modules; returns in the process that has them.

    :returns: what was not imported, and why
    """
    failed: Dict[str, str] = {}
    while wanted := [name for name in names if name not in failed]:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _die_with_parent()
            failed.update(_import_all(wanted, writer))
            os.close(writer)
            return failed
        os.close(writer)
        said = _read(reader)
        if "ready" in said:
            _end_like(child)
        failed.update(said["failed"])
        status = os.waitpid(child, 0)[1]
        if said["trying"] not in failed:
            failed[said["trying"]] = "importing it %s" % _ended(status)
    return failed


def _import_all(names: List[str], writer: int) -> Dict[str, str]:
    failed: Dict[str, str] = {}

    def tell(**said: Any) -> None:
        os.write(writer, json.dumps(said).encode("ascii") + b"\n")

    for name in names:
        tell(trying=name)
        try:
            importlib.import_module(name)
        except BaseException as error:
            failed[name] = "%s: %s" % (type(error).__name__, error)
            tell(failed={name: failed[name]})
            continue
        threads = _threads()
        if threads:
            tell(failed={name: "importing it starts threads (%s)" % threads})
            os._exit(0)
    tell(ready=True)
    return failed


def _threads() -> str:
    """Threads that a forked child would lack; empty if there are none.

    OpenBLAS, which NumPy brings, has some, and sees to forks itself.
    """
    if threading.active_count() > 1:
        return ", ".join(sorted(thread.name for thread in threading.enumerate()[1:]))
    with contextlib.suppress(OSError):
        if len(os.listdir("/proc/self/task")) > 1:
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
                return "" if "openblas" in maps.read() else "outside of Python"
    return ""


def _read(reader: int) -> Dict[str, Any]:
    said: Dict[str, Any] = {"failed": {}, "trying": ""}
    with open(reader, "rb") as lines:
        for line in lines:
            news = json.loads(line.decode("ascii"))
            said["failed"].update(news.pop("failed", {}))
            said.update(news)
    return said


def _die_with_parent() -> None:
    """Within a container a parent's death can be a signal; best effort."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_like(child: int) -> None:
    """Wait for the zygote, and end as it did."""
    null: Optional[int] = None
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
    status = os.waitpid(child, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def _ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "ended the process by signal %d" % os.WTERMSIG(status)
    return "ended the process"
