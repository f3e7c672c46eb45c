"""The tree of a virtual environment whose interpreter is in an image.

Runs in the endpoint process. An image's Python finds its environment by
``pyvenv.cfg`` beside it (PEP 405); all that it takes is a few links and that file, so
nothing of the image need run. Where packages are installed by uv on the host, the
environment is first one of this process's own Python, and then turned into one of the
image's: only the name of one directory differs.
"""

from __future__ import annotations

import csv
import io
import platform
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Python

BASE_LINK: Final = "gc-apptainer-base.pth"
"""Brings the packages of a base whose Python is itself in a virtual environment."""


def lay_host(env: Path) -> Path:
    """An empty environment of this process's Python; returns its ``python``.

    ``relocatable`` makes uv write scripts that find their Python beside them.
    """
    real = host_python()
    minor = "{}.{}".format(*sys.version_info[:2])
    version = platform.python_version()
    _lay(env, str(real), minor, version, system=False, relocatable=True)
    return env / "bin/python"


def host_python() -> Path:
    """This process's own Python, outside of any virtual environment."""
    return Path(sys.executable).resolve()


def lay_image(env: Path, python: Python) -> None:
    """An empty environment of the image's Python, or the links and settings of one
    that has been filled."""
    real = interpreter(python)
    plain = python.prefix == python.base_prefix
    _lay(env, real, python.minor, python.version, system=plain, relocatable=False)
    if not plain:
        folders = [_line(folder) for folder in python.site_packages]
        text = "".join(f"import site; site.addsitedir({one})\n" for one in folders)
        (site_packages(env, python.minor) / BASE_LINK).write_text(text, "utf-8")


def turn(env: Path, python: Python) -> None:
    """Turn an environment made by :func:`lay_host` into one of the image's Python."""
    # What else is there, wheels brought.
    found = env / "lib" / "python{}.{}".format(*sys.version_info[:2])
    wanted = f"python{python.minor}"
    if found.name != wanted:
        found.rename(env / "lib" / wanted)
        _turn_headers(env, found.name, wanted)
    for path in (env / "bin").iterdir():
        if path.is_symlink() and path.name.startswith("python"):
            path.unlink()
    lay_image(env, python)
    (env / ".lock").unlink(missing_ok=True)  # uv's


def interpreter(python: Python) -> str:
    """Path of the Python that an environment links to, never one of an environment.

    A link to it elsewhere would do for most, but not for one that finds its library
    by where it lies itself.
    """
    inside = PurePosixPath(python.base_prefix, "bin")
    if PurePosixPath(python.base_executable).parent == inside:
        return python.base_executable
    return str(inside / f"python{python.minor}")


def site_packages(env: Path, minor: str) -> Path:
    return env / "lib" / f"python{minor}" / "site-packages"


def installed(env: Path, minor: str) -> dict[str, str]:
    """Name → version of what is installed, by the names of its directories alone."""
    found = {}
    for path in site_packages(env, minor).glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[name.lower().replace("_", "-").replace(".", "-")] = version
    return found


def _lay(
    env: Path, real: str, minor: str, version: str, *, system: bool, relocatable: bool
) -> None:
    folder = site_packages(env, minor)
    folder.mkdir(parents=True, exist_ok=True)
    (env / "bin").mkdir(exist_ok=True)
    if not (env / "lib64").is_symlink():
        (env / "lib64").symlink_to("lib")
    for name, target in [*_links(minor), ("python", real)]:
        (env / "bin" / name).symlink_to(target)
    rows = {
        "home": str(PurePosixPath(real).parent),
        "include-system-site-packages": str(system).lower(),
        "version": version,
        "version_info": version,
    }
    if relocatable:
        rows["relocatable"] = "true"
    text = "".join(f"{name} = {value}\n" for name, value in rows.items())
    (env / "pyvenv.cfg").write_text(text, "utf-8")


def _links(minor: str) -> list[tuple[str, str]]:
    return [("python3", "python"), (f"python{minor}", "python")]


def _line(text: str) -> str:
    """A string literal for a line of a ``.pth`` file."""
    return repr(text).replace("\n", "\\n")


def _turn_headers(env: Path, found: str, wanted: str) -> None:
    """Headers lie below a directory that is named after the Python too."""
    headers = env / "include/site"
    if not (headers / found).is_dir():
        return
    (headers / found).rename(headers / wanted)
    before, after = (
        f"../../../include/site/{found}/",
        f"../../../include/site/{wanted}/",
    )
    for record in (env / "lib" / wanted / "site-packages").glob("*.dist-info/RECORD"):
        _replace_in_record(record, before, after)


def _replace_in_record(record: Path, before: str, after: str) -> None:
    text = record.read_text("utf-8")
    if before not in text:
        return
    rows = list(csv.reader(io.StringIO(text, newline="")))
    for row in rows:
        if row and row[0].startswith(before):
            row[0] = after + row[0].removeprefix(before)
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    # A new file: the old one may be shared with uv's cache.
    aside = record.with_name("RECORD.new")
    aside.write_text(written.getvalue(), "utf-8")
    aside.replace(record)
