"""What is in an image, as far as building on it must know.

Runs in the endpoint process. One ``exec`` of the image looks around: the image's own
shell, then its own Python, which alone knows what its packages are. Both are the
user's to choose, so nothing of the answer is believed beyond its shape.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.apptainer import ALONE, without_proxies
from globus_compute_apptainer.build.layer import HOME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from globus_compute_apptainer.build.job import Job

# The image's own shell; $1 is the program below, $2 HOME. Answers are lines "@@KEY
# VALUE", each with a line break before it, since noise may lack its own.
_SHELL: Final = r"""
say() { printf '\n@@%s %s\n' "$1" "$2"; }
set -f
say path "$PATH"
say machine "$(uname -m 2>/dev/null)"
[ -x /bin/bash ] && say bash yes
for file in /etc/os-release /usr/lib/os-release; do
    [ -r "$file" ] || continue
    while IFS= read -r line; do
        case $line in ID=*|PRETTY_NAME=*) say release "$line" ;; esac
    done <"$file"
    break
done
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1)
say libc "$(echo $libc)"
set +f
for file in /lib/ld-musl-*; do [ -e "$file" ] && say musl "$file"; done
for file in "$2"/*; do [ -e "$file" ] && say ours "${file##*/}"; done
PYTHON=$(command -v python3 || command -v python)
case $PYTHON in
    /*) say found "$PYTHON"; "$PYTHON" -s -c "$1" "$PYTHON" ;;
esac
say end
exit 0
"""

# Any Python from 3.6 on. What comes first on sys.path is what gets imported; its own
# first entry is the working directory here. Short lines, as long ones are cut.
_PYTHON: Final = r"""
import json, os, sys
sys.path[:] = [place for place in sys.path if place]
def say(key, value):
    data = ("\n@@%s %s\n" % (key, json.dumps(value))).encode("ascii")
    while data:
        data = data[os.write(1, data):]
def packages():
    try:
        from importlib import metadata
    except ImportError:
        try:
            import importlib_metadata as metadata
        except ImportError:
            return
    for one in metadata.distributions():
        try:
            name, version = one.metadata["Name"], one.version
            needs = [str(need) for need in one.requires or []]
        except Exception:
            continue
        if name and version:
            say("package", [str(name), str(version)])
            for need in needs:
                say("needs", need)
def places():
    try:
        import site
        listed = site.getsitepackages()
    except Exception:
        import sysconfig
        listed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [place for place in listed if place and os.path.isdir(place)]
def free_threaded():
    try:
        import sysconfig
        return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    except Exception:
        return False
def real():
    if sys.prefix == sys.base_prefix:
        return sys.argv[1]
    name = getattr(sys, "_base_executable", None)
    if name and name != sys.executable and os.path.exists(name):
        return name
    version = "python%d.%d" % sys.version_info[:2]
    for name in (version, "python3", "python"):
        path = os.path.join(sys.base_prefix, "bin", name)
        if os.path.exists(path):
            return path
    return os.path.realpath(sys.executable)
packages()
say("python", {
    "executable": sys.argv[1],
    "version": "%d.%d.%d" % sys.version_info[:3],
    "implementation": sys.implementation.name,
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
    "base_executable": real(),
    "site_packages": places(),
    "free_threaded": free_threaded(),
})
"""


@dataclass(frozen=True)
class Package:
    """An installed Python distribution.

    :param name: normalised (PEP 503)
    :param requires: its ``Requires-Dist`` as written
    """

    name: str
    version: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Python:
    """The Python that is first on PATH.

    :param executable: absolute path, links not followed
    :param version: such as ``3.11.2``
    :param implementation: ``sys.implementation.name``: ``cpython``, ``pypy``
    :param prefix: ``sys.prefix``; differs from ``base_prefix`` in a virtual environment
    :param base_executable: of the Python that a virtual environment was made from
        (``sys._base_executable``), else the same as ``executable``
    :param site_packages: directories of ``site.getsitepackages()`` that exist
    :param free_threaded: whether it was built without the GIL
    :param packages: of several with one name the one that is imported, by name
    """

    executable: str
    version: str
    implementation: str
    prefix: str
    base_prefix: str
    base_executable: str
    site_packages: tuple[str, ...]
    free_threaded: bool
    packages: tuple[Package, ...]

    @property
    def minor(self) -> str:
        """Such as ``3.11``."""
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True)
class Inventory:
    """One image, looked at.

    :param os: ``PRETTY_NAME`` of its distribution; empty if it does not say
    :param os_id: ``ID``, such as ``debian``
    :param libc: ``glibc``, ``musl`` or empty
    :param libc_version: such as ``2.36``
    :param machine: ``uname -m``
    :param path: ``PATH`` as a program in it sees
    :param ours: names below :data:`~.layer.HOME` that are there already: the image
        was made by this package
    """

    os: str
    os_id: str
    libc: str
    libc_version: str
    machine: str
    path: str
    has_bash: bool
    ours: tuple[str, ...] = ()
    python: Python | None = None


def take(job: Job, sif: Path, options: Sequence[str] = ()) -> Inventory:
    """Start the image once and look around.

    :param options: further options of ``exec``, such as overlays
    :raises BuildError: it does not start, or has no shell that answers
    """
    answers: list[str] = []

    def sort(line: str) -> None:
        if line.startswith("@@"):
            answers.append(line)
        elif line:
            job.transcript.line(line)

    argv = job.apptainer.exec_argv(
        sif,
        ["/bin/sh", "-c", _SHELL, "sh", _PYTHON, HOME],
        options=[*ALONE, *options],
        cwd="/",
    )
    env = without_proxies(job.apptainer.environment())
    ended = job.attempt(argv, env=env, shown=f"look into {sif.name}", on_line=sort)
    found = parse(answers)
    if found is None:
        raise job.error(
            f"the image does not start, or has no /bin/sh (status {ended.returncode})",
            hint="choose a base image that has a shell; its output says more",
        )
    if found.python is None and any(row.startswith("@@found ") for row in answers):
        job.transcript.note("the image has a Python that does not run: passed over")
    return found


def parse(answers: Iterable[str]) -> Inventory | None:
    """The answer of the programs run inside; None where it is not complete."""
    given: dict[str, list[str]] = {}
    packages: dict[str, tuple[str, list[str]]] = {}
    needs: list[str] = []
    for line in answers:
        key, _, value = line.removeprefix("@@").partition(" ")
        if key == "package":
            needs = _package(packages, value)
        elif key == "needs":
            needs += _texts(f"[{value}]")
        else:
            given.setdefault(key, []).append(value.strip())
    if "end" not in given:
        return None
    release = dict(row.partition("=")[::2] for row in given.get("release", ()))
    libc, libc_version = _libc(given.get("libc", [""])[0], bool(given.get("musl")))
    return Inventory(
        os=_unquoted(release.get("PRETTY_NAME", "")),
        os_id=_unquoted(release.get("ID", "")),
        libc=libc,
        libc_version=libc_version,
        machine=given.get("machine", [""])[0],
        path=given.get("path", [""])[0],
        has_bash="bash" in given,
        ours=tuple(sorted(given.get("ours", ()))),
        python=_python(given.get("python", [""])[0], packages),
    )


def to_json(inventory: Inventory) -> dict[str, Any]:
    """Plain JSON that :func:`from_json` reads."""
    return asdict(inventory)


def from_json(raw: object) -> Inventory:
    """What :func:`to_json` wrote.

    :raises ValueError: anything else
    """
    fields = _checked(raw, Inventory)
    if (python := fields["python"]) is not None:
        inner = _checked(python, Python)
        if not isinstance(inner["packages"], (list, tuple)):
            raise ValueError("not an inventory: packages")
        rows = [_checked(row, Package) for row in inner["packages"]]
        inner["packages"] = tuple(Package(**row) for row in rows)
        fields["python"] = Python(**inner)
    return Inventory(**fields)


def _checked(raw: object, kind: type[Inventory | Python | Package]) -> dict[str, Any]:
    """The fields of ``kind`` in ``raw``, each of the type that its class says."""
    if not isinstance(raw, Mapping) or set(raw) != set(kind.__dataclass_fields__):
        raise ValueError(f"not an inventory: {raw!r:.80}")
    found: dict[str, Any] = {}
    for name, field in kind.__dataclass_fields__.items():
        value = raw[name]
        if field.type == "tuple[str, ...]":
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"not an inventory: {name} is {value!r:.80}")
            value = tuple(value)
            fits = all(isinstance(item, str) for item in value)
        else:
            plain = {"str": str, "bool": bool}.get(str(field.type))
            fits = plain is None or isinstance(value, plain)
        if not fits:
            raise ValueError(f"not an inventory: {name} is {value!r:.80}")
        found[name] = value
    return found


def _package(packages: dict[str, tuple[str, list[str]]], value: str) -> list[str]:
    """Note one package, unless an earlier one hides it; where its needs go."""
    told = _texts(value)
    needs: list[str] = []
    if len(told) == 2 and told[1]:
        name = re.sub(r"[-_.]+", "-", told[0]).lower()
        packages.setdefault(name, (told[1], needs))
    return needs


def _texts(value: str) -> list[str]:
    with contextlib.suppress(ValueError):
        told = json.loads(value)
        if isinstance(told, list) and all(isinstance(item, str) for item in told):
            return told
    return []


def _python(value: str, packages: Mapping[str, tuple[str, list[str]]]) -> Python | None:
    try:
        told = json.loads(value)
        told["packages"] = []
        fields = _checked(told, Python)
    except (ValueError, TypeError):
        return None
    fields["packages"] = tuple(
        Package(name, version, tuple(needs))
        for name, (version, needs) in sorted(packages.items())
    )
    return Python(**fields)


def _libc(said: str, musl: bool) -> tuple[str, str]:
    found = re.search(r"glibc (\d+\.\d+)|^ldd \(.*?\) (\d+\.\d+)", said)
    if found:
        return "glibc", found[1] or found[2]
    if not musl and "musl" not in said:
        return "", ""
    found = re.search(r"Version (\d+(?:\.\d+)*)", said)
    return "musl", found[1] if found else ""


def _unquoted(value: str) -> str:
    return value.strip().strip("\"'")
