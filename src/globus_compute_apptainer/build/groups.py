"""The control groups that this process is in, where they say what it may use.

Runs in the endpoint process. A batch system limits the control group of a job, deep
below the root of the hierarchy; what counts is the tightest limit on the way up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

Read = Callable[[str], str]

_ROOT: Final = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Group:
    """One control group.

    :param version: of control groups, 1 or 2: files have other names in each
    :param folder: where its files are
    """

    version: int
    folder: str


def read_text(path: str) -> str:
    """Content of a file of the kernel's; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def groups(controller: str, read: Read = read_text) -> Iterator[Group]:
    """Those of this process that may limit it, and all above them.

    :param controller: such as ``memory`` or ``cpu``
    """
    for row in read("/proc/self/cgroup").splitlines():
        number, _, rest = row.partition(":")
        controllers, _, group = rest.partition(":")
        if controller in controllers.split(","):
            version, root = 1, f"{_ROOT}/{controller}"
        elif number == "0":
            version, root = 2, _ROOT
        else:
            continue
        # In a container the path may be the host's; the root is then its own group.
        path = PurePosixPath("/", group)
        for folder in (path, *path.parents):
            yield Group(version, f"{root}{folder}".rstrip("/"))
