"""Unpacks a base for programs to run in; stdlib only.

Run by the host's Python as a program, as root of a build's namespace (see
:data:`.plan.HOST_DEFINITION`), so that every file has the owner it has in the base.
Its one argument is a JSON file, written by :mod:`.surface`:

* ``tree``: the directory to make; ``base``: how ``unsquashfs`` is told the base's file
* ``unsquashfs``: the program; ``processors``: how many it may use
* ``most``: bytes that the base may hold, unpacked
* ``before``: the file to note in what is there before anything runs, for
  :mod:`.changes`, by directory: name → inode. Its own time is when that was

Nothing is unpacked of a base that holds more, and then there is no ``before``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Where Apptainer mounts something; in a directory that can be written to, it makes no
# places for that.
FOLDERS = ("dev", "proc", "sys", "tmp", "var/tmp", ".gc-apptainer-build")
FILES = ("etc/hosts", "etc/localtime", "etc/resolv.conf")


def main(order_file: str) -> int:
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    tree, program, base = Path(order["tree"]), order["unsquashfs"], order["base"]
    if held(program, base) > order["most"]:
        return 0
    options = ["-no-progress", "-no-xattrs", "-processors", str(order["processors"])]
    command = [program, *options, "-d", str(tree), *base]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    make_places(tree)
    before = Path(order["before"])
    before.write_text(json.dumps(names(tree)), encoding="ascii")
    wait_for_time(before)
    return 0


def held(program: str, base: list[str]) -> int:
    """Bytes of all files, from ``unsquashfs -lln``: mode, owner, size, …"""
    command = [program, "-lln", *base]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    total = 0
    for line in said.split(b"\n"):
        fields = line.split(None, 3)
        if line.startswith(b"-") and len(fields) > 2:
            total += int(fields[2])
    return total


def make_places(tree: Path) -> None:
    """Where they are missing; a base's links are not followed."""
    for name in FOLDERS:
        if not is_through_link(tree, name) and not os.path.lexists(tree / name):
            (tree / name).mkdir(parents=True)
    for name in FILES:
        if not is_through_link(tree, name) and not os.path.lexists(tree / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).touch()


def is_through_link(tree: Path, name: str) -> bool:
    return any((tree / parent).is_symlink() for parent in Path(name).parents)


def names(tree: Path) -> dict[str, dict[str, int]]:
    """Directory → name → inode; directories relative to ``tree``, which is ``.``."""
    found, waiting = {}, ["."]
    while waiting:
        folder = waiting.pop()
        with os.scandir(tree / folder) as entries:
            there = list(entries)
        found[folder] = {entry.name: entry.inode() for entry in there}
        inside = [entry.name for entry in there if entry.is_dir(follow_symlinks=False)]
        waiting += [name if folder == "." else f"{folder}/{name}" for name in inside]
    return found


def wait_for_time(file: Path) -> None:
    """Until what is written now is later than ``file``, in the file system's time,
    which may go in steps of a second."""
    probe = file.with_name(f"{file.name}.probe")
    while True:
        probe.touch()
        if probe.stat().st_ctime_ns > file.stat().st_ctime_ns:
            break
        time.sleep(0.001)
    probe.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
