"""``mksquashfs``: where it is, what it can, and how it is told to pack.

Runs in the endpoint process. zstd at level 3 packs as small as gzip and seven times
as fast; zstd's own default level is as slow as gzip. Level 1 takes 30 % less time than
level 3 for 6 % more space (``tests/bench/build``): for what somebody waits for.

Left alone, it takes all processors and a quarter of the memory of the machine; it gets
what this process's control group may have.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from typing import Final

from globus_compute_apptainer.build.memory import available_memory
from globus_compute_apptainer.build.processors import processors

ZSTD: Final = ("-comp", "zstd", "-Xcompression-level", "3")
ZSTD_FAST: Final = ("-comp", "zstd", "-Xcompression-level", "1")

LEAST_MEMORY: Final = 64 * 1024**2
MOST_MEMORY: Final = 2 * 1024**3

_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_SECONDS: Final = 60.0


def find(name: str) -> str | None:
    """A program of this machine, also where ``PATH`` leaves out the admin's."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def program() -> str:
    """``mksquashfs``; its bare name where there is none, for the error to name."""
    return find("mksquashfs") or "mksquashfs"


def options(*, fast: bool = False) -> list[str]:
    """How to pack; gzip where this ``mksquashfs`` knows no better."""
    quiet = ["-noappend", "-no-progress", "-quiet"]
    return [*quiet, *limits(), *((ZSTD_FAST if fast else ZSTD) if has_zstd() else ())]


def limits() -> list[str]:
    """What it may take: processors, and of the memory that is free now a quarter."""
    quarter = available_memory() // 4
    memory = max(LEAST_MEMORY, min(quarter, MOST_MEMORY)) // 1024**2
    return ["-processors", str(processors()), "-mem", f"{memory}M"]


@functools.cache
def has_zstd() -> bool:
    """Whether this machine's ``mksquashfs`` knows zstd."""
    # Its help is on either stream, its status not always 0; 4.7 splits it up.
    said = _said("-help") + _said("-help-all")
    return re.search(r"^\s+zstd\b", said, re.MULTILINE) is not None


@functools.cache
def version() -> tuple[int, int] | None:
    """Such as ``(4, 5)``; None where there is none that answers."""
    found = re.search(r"mksquashfs version (\d+)\.(\d+)", _said("-version"))
    return (int(found[1]), int(found[2])) if found else None


def _said(option: str) -> str:
    try:
        done = subprocess.run(
            [program(), option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
