"""Bytecode of a finished image, in a squashfs file of its own beside it.

Runs in the endpoint process. No image waits for bytecode that is not there yet, since
compiling takes as long as all the rest; without it every new process compiles anew. So
it is made as soon as the layers are there, beside the rest of the build, and laid over
the image where containers start: by the image's own Python, if :mod:`.compiled` cannot.

Nothing is written next to sources: the compiled files are laid out as the image would
have them, and are *unchecked* (PEP 552): Python takes them without looking at the
source, whose times may differ from one mount to the next. That is right as long as
the image below is the one that they were made from, and it never changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import squashfs
from globus_compute_apptainer.build.apptainer import (
    Apptainer,
    bind,
    run,
    without_proxies,
)
from globus_compute_apptainer.build.layer import place_marker
from globus_compute_apptainer.build.processors import processors
from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system.plan import KIT

if TYPE_CHECKING:
    import threading

# Behind whatever else wants to run. Where the kernel groups processes by session,
# niceness counts within a group only and the group has one of its own: a little, for
# with the most a busy machine would never be done.
_LAST: Final = (
    *("/bin/sh", "-c"),
    '{ echo 2 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"',
    "sh",
)

PROGRAM: Final = r"""
import os, py_compile, sys
from importlib.util import cache_from_source
most, out, below, *roots = sys.argv[1:]
modes = py_compile.PycInvalidationMode
mode = modes.TIMESTAMP if below else modes.UNCHECKED_HASH
files = []
for root in roots:
    for folder, names, found in os.walk(below + root):
        names[:] = [n for n in names if n not in ("__pycache__", "tests", "test")]
        for name in found:
            if name.endswith(".py"):
                files.append(os.path.join(folder, name)[len(below):])
def is_there(target, path):
    try:
        status = os.stat(path)
        with open(target, "rb") as file:
            head = file.read(16)
    except OSError:
        return False
    if head[4:8] != bytes(4):
        return True
    numbers = int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF
    return head[8:16] == b"".join(n.to_bytes(4, "little") for n in numbers)
def compile_every(first, step):
    for path in files[first::step]:
        target = cache_from_source(path)
        if is_there(below + target, below + path):
            continue
        try:
            py_compile.compile(
                below + path, out + target, path, doraise=True, invalidation_mode=mode
            )
        except Exception:
            pass
jobs = max(1, min(int(most), len(files) // 50 + 1))
children = []
for number in range(jobs):
    child = os.fork()
    if not child:
        status = 1
        try:
            compile_every(number, jobs)
            status = 0
        finally:
            os._exit(status)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
"""For any Python from 3.7 on: how many processes at most, where to write, what is put
before all paths, and the directories. Every child takes every n-th file; what does not
compile (templates, code for other versions) is left to whoever imports it, and so are
tests, often the greater part of a package."""


# The Python that tasks will use, as :mod:`..probe` finds it.
_FIRST_ON_PATH: Final = (
    *("/bin/sh", "-c"),
    'exec "$(command -v python3 || command -v python)" "$@"',
    "sh",
)


def ignore(line: str) -> None:
    """For those who do not want to know."""


def compile_bytecode(
    apptainer: Apptainer,
    image: Path,
    roots: Sequence[str],
    python: str | None,
    target: Path,
    scratch: Path,
    *,
    key: str,
    timeout: float,
    cancel: threading.Event | None = None,
    options: Sequence[str] = (),
    on_line: Callable[[str], None] = ignore,
) -> bool:
    """Write ``target``, a squashfs file with the bytecode that ``image`` lacks.

    Behind whatever else runs, on all processors that this process may use.

    :param roots: absolute paths of directories in the image, with all below them;
        ones that are not there do no harm
    :param python: absolute path of the image's Python that will use it; None: the
        first on its PATH
    :param scratch: a directory to make a private one in
    :param key: names the marker inside, see :mod:`.layer`
    :param options: of ``exec``, such as overlays
    :returns: whether it is there. It is not where something failed or was cancelled,
        or there was nothing to compile; the image is as good as before then
    """
    work = scratch / f"bytecode-{target.name}"
    root = work / "root"
    for folder in (root, work / "contained"):
        folder.mkdir(parents=True)
    most = str(processors())
    start = _FIRST_ON_PATH if python is None else (python,)
    argv = apptainer.exec_argv(
        image,
        [*start, "-I", "-S", "-B", "-c", PROGRAM, most, f"{KIT}/root", "", *roots],
        binds=[bind(root, f"{KIT}/root")],
        options=[*options, "--containall", "--workdir", str(work / "contained")],
        cwd="/",
    )

    ends_well = functools.partial(
        ran_behind,
        env=without_proxies(apptainer.environment()),
        timeout=timeout,
        on_line=on_line,
        cancel=cancel,
    )
    pack = packing(root, target)
    try:
        # The image's Python may leave links there: nothing is written after it ran.
        place_marker(root, key)
        root.chmod(0o755)
        return ends_well(argv) and any(root.rglob("*.pyc")) and ends_well(pack)
    except OSError as error:
        on_line(f"no bytecode: {error}")
        return False
    finally:
        remove_tree(work)


def packing(root: Path, target: Path) -> list[str]:
    """The command that packs bytecode."""
    pack = [squashfs.program(), str(root), str(target), *squashfs.options(fast=True)]
    return [*pack, "-all-root", "-action", "chmod(ugo+rX)@true"]


def ran_behind(command: Sequence[str], **how: Any) -> bool:
    """Run a program behind whatever else runs; whether it ended well.

    :param how: as :func:`~..apptainer.run` takes it
    """
    return run([*_LAST, *command], **how).ok
