"""Looking into a finished image: does it start, and what is in it.

Runs in the endpoint process; one ``exec`` of the image. Packages may
have code that every start of Python runs, so it sees nothing of the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import (
    ALONE,
    Apptainer,
    Completed,
    run,
    without_proxies,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

# The image's own shell; $1 is the program below, the rest are files that must be there.
# Answers are lines "@@KEY VALUE".
_SHELL: Final = r"""
program=$1
shift
for file; do [ -e "$file" ] || printf '@@missing %s\n' "$file"; done
PYTHON=$(command -v python3 || command -v python)
bash=no
[ -x /bin/bash ] && bash=yes
[ -n "$PYTHON" ] && exec "$PYTHON" -c "$program" "$PYTHON" "$bash"
[ -r /etc/os-release ] && . /etc/os-release
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
[ -n "$libc" ] || for file in /lib/ld-musl-*; do [ -e "$file" ] && libc=musl; done
printf '@@os %s\n@@libc %s\n@@bash %s\n' "$PRETTY_NAME" "$libc" "$bash"
"""

# Any Python from 3.6 on. What comes first on sys.path is what gets imported.
_PYTHON: Final = r"""
import glob, platform, sys
packages = {}
try:
    from importlib import metadata
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name and found.version:
            packages.setdefault(name, found.version)
except ImportError:
    pass
system = ""
try:
    with open("/etc/os-release") as file:
        for line in file:
            if line.startswith("PRETTY_NAME="):
                system = line.split("=", 1)[1].strip().strip("\"'")
except OSError:
    pass
libc = " ".join(platform.libc_ver()).strip()
if not libc and glob.glob("/lib/ld-musl-*"):
    libc = "musl"
print("\n@@python", sys.argv[1])
print("@@version %d.%d.%d" % sys.version_info[:3])
print("@@os", system)
print("@@libc", libc)
for pair in sorted(packages.items()):
    print("@@package %s==%s" % pair)
print("@@bash", sys.argv[2])
"""


@dataclass(frozen=True)
class Probe:
    """What is in an image.

    :param python: absolute path of its ``python3``; None if it has none
    :param python_version: such as ``3.11.2``; None if it has none
    :param os: ``PRETTY_NAME`` of its distribution; empty if it does not say
    :param libc: such as ``glibc 2.36`` or ``musl``; empty if unknown
    :param packages: Python packages as ``name==version``, sorted
    :param has_bash: whether ``/bin/bash`` is there
    :param missing: files that should be there and are not
    """

    python: str | None
    python_version: str | None
    os: str
    libc: str
    packages: tuple[str, ...]
    has_bash: bool
    missing: tuple[str, ...] = ()


def probe(
    apptainer: Apptainer,
    image: Path,
    *,
    timeout: float,
    on_line: Callable[[str], None],
    cancel: threading.Event | None = None,
    files: Sequence[str] = (),
) -> tuple[Probe | None, Completed]:
    """Start ``image`` once and look around; None where it did not answer.

    :param on_line: gets what is printed that is not the answer
    :param files: absolute paths that should be there
    """
    answers: list[str] = []

    def sort(line: str) -> None:
        if line.startswith("@@"):
            answers.append(line)
        elif line:
            on_line(line)

    argv = apptainer.exec_argv(
        image,
        ["/bin/sh", "-c", _SHELL, "sh", _PYTHON, *files],
        options=ALONE,
        cwd="/",
    )
    env = without_proxies(apptainer.environment())
    ended = run(argv, env=env, timeout=timeout, on_line=sort, cancel=cancel)
    return (parse(answers) if ended.ok else None), ended


def parse(answers: Iterable[str]) -> Probe | None:
    """The answer of the program run inside; None where it is not complete."""
    found: dict[str, list[str]] = {}
    for line in answers:
        key, _, value = line.removeprefix("@@").partition(" ")
        found.setdefault(key, []).append(value.strip())
    if "bash" not in found:  # printed last
        return None
    return Probe(
        python=found.get("python", [None])[0],
        python_version=found.get("version", [None])[0],
        os=found.get("os", [""])[0],
        libc=found.get("libc", [""])[0],
        packages=tuple(sorted(found.get("package", ()))),
        has_bash=found["bash"][0] == "yes",
        missing=tuple(found.get("missing", ())),
    )
