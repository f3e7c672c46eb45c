"""Makes a layer of what a container wrote into an overlay; stdlib only.

Run by the host's Python as a program; where not everything :func:`is_ours`, inside the
build's user namespace (see :data:`.plan.HOST_DEFINITION`): there the files that belong
to this user's sub-ids can be read, and show the owner they have in the image. Its one
argument is a JSON file, written by :mod:`.overlay`:

* ``upper``: the directory; ``drop``: names in it that are ours, to be removed
* ``below``: commands that list what it was laid over
* ``pack``: the command that makes the layer
* ``answer``: the file to write the ``reason`` against a layer to; empty if it was made

A layer is laid under others, read-only, by kernels and programs of which only
removed files (character devices 0/0) are known to work everywhere. So this refuses
to make one of anything that they would show wrongly.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

OPAQUE_FILES = (".wh..wh..opq", ".wh..opq")
WHITEOUT = ".wh."
OPAQUE = ("overlay.opaque", "fuseoverlayfs.opaque")
MOVED = ("overlay.redirect", "overlay.metacopy", "fuseoverlayfs.redirect")


def main(order_file: str) -> int:
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    upper = Path(order["upper"])
    for name in order["drop"]:
        shutil.rmtree(upper / name, ignore_errors=True)
    reason = unsuitable(upper, order["below"])
    answer = json.dumps({"reason": reason})
    Path(order["answer"]).write_text(answer, encoding="utf-8")
    if reason:
        return 0
    clean(upper)
    return subprocess.run(order["pack"], check=False).returncode


def is_ours(upper: Path) -> bool:
    """Whether everything in it belongs to this user (in the image: to root), who can
    read it, so that no namespace is needed to pack it."""
    ids = os.geteuid(), os.getegid()
    # Every directory is looked at before what is in it.
    return all(_is_open(path, ids) for path in chain([upper], entries(upper)))


def _is_open(path: Path, ids: tuple[int, int]) -> bool:
    status = path.lstat()
    needed = {stat.S_IFDIR: 0o500, stat.S_IFREG: 0o400}.get(
        stat.S_IFMT(status.st_mode), 0
    )
    return (status.st_uid, status.st_gid) == ids and status.st_mode & needed == needed


def unsuitable(upper: Path, below: list[list[str]]) -> str:
    """Why ``upper`` cannot be a layer; empty if it can.

    :param below: see :func:`listed`; not run where there is nothing to look up
    """
    new = []
    for path in entries(upper):
        inside = shown(path, upper)
        if path.name.startswith(WHITEOUT) and path.name not in OPAQUE_FILES:
            return f"this machine cannot note in a layer that {inside} is gone"
        names = attributes(path)
        if names & set(MOVED):
            return f"{inside} was moved as only this machine understands"
        if stat.S_ISDIR(path.lstat().st_mode) and is_opaque(path, names):
            new.append(path)
    hidden = listed(below) if new else {}
    if hidden is None:
        return "this machine's unsquashfs cannot tell which directories are new"
    for path in new:
        if hidden.get(str(path.relative_to(upper)), set()) - set(os.listdir(path)):  # noqa: PTH208 - names
            return f"the directory {shown(path, upper)} was removed and made anew"
    return ""


def listed(commands: list[list[str]]) -> dict[str, set[str]] | None:
    """Names by directory, from ``unsquashfs -l``; None if one cannot be had.

    What a layer removed of another still counts: at worst, a reason too many.
    """
    found: dict[str, set[str]] = {}
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            return None
        for line in os.fsdecode(done.stdout).split("\n"):
            folder, _, name = line.partition("/")[2].rpartition("/")
            found.setdefault(folder, set()).add(name)
    return found


def clean(upper: Path) -> None:
    """Remove the marks of new directories: all that they could hide is gone."""
    for path in list(entries(upper)):
        if path.name in OPAQUE_FILES:
            path.unlink()


def entries(upper: Path) -> Iterator[Path]:
    """Everything in it; links are not followed."""
    for parent, folders, files in os.walk(upper, onerror=fail):
        for name in (*folders, *files):
            yield Path(parent, name)


def is_opaque(path: Path, names: set[str]) -> bool:
    marked = any(os.path.lexists(path / name) for name in OPAQUE_FILES)
    return marked or bool(names & set(OPAQUE))


def attributes(path: Path) -> set[str]:
    """Extended attributes without their namespace; none where there are none."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return set()
    return {name.partition(".")[2] for name in names}


def shown(path: Path, upper: Path) -> str:
    """A path in the image, in plain ASCII."""
    return "/" + ascii(str(path.relative_to(upper)))[1:-1]


def fail(error: OSError) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
