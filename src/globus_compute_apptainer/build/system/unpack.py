"""Lays layers into an unpacked base; stdlib only.

Run by the host's Python as a program in the ``%setup`` of a flat build, as root of
the build's user namespace, before anything of the base or the user runs. Arguments:
the base's directory, and a JSON file with a list of squashfs file systems, lowest
first: path of the file, and where in it they begin.

A base can hold links to anywhere, so that nothing is written through one: each layer
is unpacked beside the base, and moved in name by name, as an overlay would show it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path


def main(root: str, listing: str) -> int:
    for file, offset in json.loads(Path(listing).read_text(encoding="utf-8")):
        with tempfile.TemporaryDirectory(dir=Path(root).parent) as folder:
            unpacked = Path(folder, "layer")
            where = ["-o", str(offset)] if offset else []
            argv = ["unsquashfs", "-no-progress", "-d", str(unpacked), *where, file]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            merge(unpacked, Path(root))
    return 0


def merge(layer: Path, root: Path) -> None:
    """Move what is in the directory ``layer`` into the directory ``root``."""
    for source in list(layer.iterdir()):
        target = root / source.name
        new, old = source.lstat(), lstat(target)
        if is_whiteout(new):
            remove(target, old)
        elif stat.S_ISDIR(new.st_mode) and old and stat.S_ISDIR(old.st_mode):
            target.chmod(0o700)
            merge(source, target)
            os.chown(target, new.st_uid, new.st_gid)
            target.chmod(stat.S_IMODE(new.st_mode))
            os.utime(target, ns=(new.st_atime_ns, new.st_mtime_ns))
        else:
            remove(target, old)
            source.rename(target)


def is_whiteout(state: os.stat_result) -> bool:
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == 0


def remove(path: Path, state: os.stat_result | None) -> None:
    if state is None:
        return
    if stat.S_ISDIR(state.st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
