"""Takes what programs changed in an unpacked base; stdlib only.

Run by the host's Python as a program, as root of a build's namespace. Its one argument
is a JSON file, written by :mod:`.surface`:

* ``tree``: the directory that :mod:`.sandbox` made, removed here; ``before``: its file
* ``drop``: names in it that are ours
* ``upper``: the directory to move the changes to, as an overlay would hold them: what
  is gone is a character device 0/0
* ``answer``: the file to write the ``reason`` to, where no layer can be made of them
* ``then``: the program that makes a layer of that, :mod:`.upper`, given the same file

A file has changed if another one was there before, or its status was changed since:
its ``ctime``, which no program can set.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = "."


class WhiteoutError(Exception):
    """Something that is gone cannot be noted; the text says what."""


@dataclass
class Changes:
    """Paths, relative to the directory that was looked at.

    :param folders: the state of every directory that is to be in the layer, parents
        first
    :param files: all else that is new or has changed
    :param gone: what was there and is not
    """

    folders: dict[str, os.stat_result] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def main(order_file: str) -> int:
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    tree, before, upper = (Path(order[name]) for name in ("tree", "before", "upper"))
    names = json.loads(before.read_text(encoding="ascii"))
    since = before.stat().st_ctime_ns
    try:
        move(tree, upper, changes(tree, names, since, frozenset(order["drop"])))
    except WhiteoutError as error:
        answer = json.dumps({"reason": str(error)})
        Path(order["answer"]).write_text(answer, encoding="utf-8")
        return 0
    command = [sys.executable, "-I", "-S", "-B", order["then"], order_file]
    with subprocess.Popen(command) as making:
        shutil.rmtree(tree, ignore_errors=True)
    return making.returncode


def changes(
    tree: Path,
    before: dict[str, dict[str, int]],
    since: int,
    drop: frozenset[str] = frozenset(),
) -> Changes:
    """How ``tree`` differs from what it was.

    :param before: as :func:`.sandbox.names` noted it
    :param since: nanoseconds; whose status was changed later has changed
    :param drop: names in ``tree`` that are not looked at
    """
    found, waiting = Changes(), [(ROOT, True)]
    while waiting:
        folder, same = waiting.pop()
        with os.scandir(tree / folder) as entries:
            there = list(entries)
        status, had = (tree / folder).lstat(), before.get(folder, {})
        gone = had.keys() - {entry.name for entry in there}
        files, inside = [], []
        for entry in there:
            if folder == ROOT and entry.name in drop:
                continue
            # What was moved here with its directory was never touched itself.
            old = same and had.get(entry.name) == entry.inode()
            if entry.is_dir(follow_symlinks=False):
                inside.append((path(folder, entry.name), old))
            elif not old or entry.stat(follow_symlinks=False).st_ctime_ns > since:
                files.append(path(folder, entry.name))
        if files or gone or not same or status.st_ctime_ns > since:
            note(found.folders, tree, folder)
        found.files += files
        found.gone += [path(folder, name) for name in sorted(gone)]
        waiting += inside
    note(found.folders, tree, ROOT)
    return found


def note(folders: dict[str, os.stat_result], tree: Path, folder: str) -> None:
    """Add a directory and those that it is in."""
    if folder not in folders:
        if folder != ROOT:
            note(folders, tree, os.path.dirname(folder) or ROOT)  # noqa: PTH120 - names
        folders[folder] = (tree / folder).lstat()


def path(folder: str, name: str) -> str:
    return name if folder == ROOT else f"{folder}/{name}"


def move(tree: Path, upper: Path, found: Changes) -> None:
    """Move what has changed from ``tree`` to ``upper``, which is not there yet."""
    for folder in found.folders:
        (upper / folder).mkdir()
    for file in found.files:
        (tree / file).rename(upper / file)
    for name in found.gone:
        white_out(upper / name, name)
    for folder, status in reversed(found.folders.items()):
        os.chown(upper / folder, status.st_uid, status.st_gid)
        (upper / folder).chmod(stat.S_IMODE(status.st_mode))
        os.utime(upper / folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def white_out(path: Path, name: str) -> None:
    """Note that something is gone.

    :raises WhiteoutError: only real root may here (Linux before 5.8)
    """
    try:
        os.mknod(path, stat.S_IFCHR)
    except PermissionError:
        text = f"this machine cannot note in a layer that /{ascii(name)[1:-1]} is gone"
        raise WhiteoutError(text) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
