"""Apptainer: where it is, how it must be called here, and the argument lists.

Runs in the endpoint process (builds, probes) and in workers. The only module that
knows Apptainer's command line. Facts about it are from the 1.1 to 1.5 sources and
were tried with 1.4.5:

* ``exec`` inherits the caller's environment unless ``--cleanenv`` is given, and
  even then passes ``APPTAINERENV_X`` as ``X``, the proxy variables and ``TERM``.
* ``--env K=V`` is parsed as CSV (commas and quotes in values break, and everyone
  sees it in the process list) and ``--env-file`` as a shell script. A variable
  ``APPTAINERENV_K`` in the *caller's* environment arrives byte for byte, provided
  that ``--no-eval`` is given; without it, ``$`` and backquotes are expanded. Even so
  CR LF becomes LF.
* ``HOME`` cannot be set in this way at all (use the option ``--home``), ``UID``
  and ``GID`` are ignored, and ``LD_LIBRARY_PATH`` is extended by the libraries
  of the GPU driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.process import Completed, run
from globus_compute_apptainer.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ALONE",
    "Apptainer",
    "Completed",
    "Mode",
    "bind",
    "choose_mode",
    "is_exportable",
    "run",
]

OLDEST: Final = (1, 1)
VERSION_TIMEOUT_SECONDS: Final = 60.0
USUAL_FOLDERS: Final = "/usr/local/bin:/usr/bin:/opt/apptainer/bin"

_SCRUBBED: Final = frozenset(
    {
        "BASH_ENV",
        "DBUS_SESSION_BUS_ADDRESS",
        "ENV",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
    }
)
_SCRUBBED_PREFIXES: Final = ("APPTAINER", "SINGULARITY", "BASH_FUNC_")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Numbers of `apptainer sif add --help`.
SIF_ARCHITECTURES: Final = {
    "i686": 1,
    "x86_64": 2,
    "armv7l": 3,
    "aarch64": 4,
    "ppc64le": 6,
    "riscv64": 12,
}
_PROXY: Final = re.compile(r"(https?|ftp|all|no)_proxy\Z", re.IGNORECASE)
_GPU_OPTIONS: Final = {"nvidia": "--nv", "rocm": "--rocm"}


@dataclass(frozen=True)
class Mode:
    """The options that this machine and user need, for ``exec`` and ``build``."""

    exec_flags: tuple[str, ...] = ()
    build_flags: tuple[str, ...] = ()


ALONE: Final = ("--no-home", "--contain", "--pid", "--no-mount", "cwd,tmp")
"""Options of ``exec`` for what is of a user's choice: it sees nothing of the host,
not its ``/tmp`` or memory, where other builds work; its processes end with it."""


def choose_mode(uid: int, capabilities: int, last_capability: int) -> Mode:
    """Decide how Apptainer must be called; pure.

    Full root needs no option. Root with fewer capabilities (a container, often)
    is refused by Apptainer's root mode ("Requesting capability set …") and must
    take the user-namespace way. Everybody else builds with ``--fakeroot``, for
    which Apptainer itself picks subordinate ids or a root-mapped namespace.

    :param capabilities: the effective set as a bit mask (``CapEff``)
    :param last_capability: number of the kernel's highest capability
    """
    if uid != 0:
        return Mode(build_flags=("--fakeroot",))
    everything = (1 << (last_capability + 1)) - 1
    if capabilities & everything == everything:
        return Mode()
    return Mode(exec_flags=("--userns",), build_flags=("--fakeroot",))


def bind(source: Path | str, target: str = "", *, read_only: bool = False) -> str:
    """One ``--bind`` argument; ``:`` and ``,`` and ``\\`` in paths are escaped.

    :param target: path in the container, by default the same as ``source``
    """
    parts = [_escape_path(str(source)), _escape_path(target or str(source))]
    return ":".join([*parts, "ro"] if read_only else parts)


def _escape_path(path: str) -> str:
    return re.sub(r"([\\:,])", r"\\\1", path)


@dataclass(frozen=True)
class Apptainer:
    """An installed Apptainer and the options that this machine and user need.

    :param path: absolute path of the program
    :param version: as it names itself, such as ``1.4.5`` or ``1.3.6-1.el9``; empty if
        it was not asked
    :param exec_flags: always given to ``exec``
    :param build_flags: always given to ``build``
    """

    path: str
    version: str
    exec_flags: tuple[str, ...] = ()
    build_flags: tuple[str, ...] = ()

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version, for comparisons."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else OLDEST

    @classmethod
    def find(cls, program: str | None = None) -> Apptainer:
        """The Apptainer named ``program`` (a path or a name), or the one in PATH.

        :raises HostError: there is none (``apptainer-missing``), it does not run
            (``apptainer-broken``), or it is older than 1.1 (``apptainer-too-old``)
        """
        found = cls.located(program)
        return replace(
            found, version=parse_version(found.path, _ask_version(found.path))
        )

    @classmethod
    def located(cls, program: str | None = None) -> Apptainer:
        """As :meth:`find`, but nothing is run: the version is not known (``""``).

        :raises HostError: there is none (``apptainer-missing``)
        """
        search = f"{os.environ.get('PATH', '')}:{USUAL_FOLDERS}"
        path = shutil.which(program or "apptainer", path=search)
        if path is None:
            raise HostError(
                f"Apptainer is not installed here: no program {program or 'apptainer'}",
                hint="install Apptainer 1.1 or newer on every node, or name its path "
                "as `apptainer` in the `containers:` block",
                code="apptainer-missing",
            )
        mode = choose_mode(os.geteuid(), _effective_capabilities(), _last_capability())
        return cls(str(Path(path).absolute()), "", mode.exec_flags, mode.build_flags)

    def exec_argv(
        self,
        image: Path | str,
        command: Sequence[str],
        *,
        binds: Sequence[str] = (),
        gpu: str | None = None,
        options: Sequence[str] = (),
        cwd: str | None = None,
    ) -> list[str]:
        """Argument list that runs ``command`` in ``image`` with a clean environment.

        Variables for the inside go through :meth:`environment`'s ``inside``, which
        must be the environment of the process started with this list.

        :param binds: as :func:`bind` makes them, or ``source[:target[:ro]]``
        :param gpu: ``nvidia`` or ``rocm``: the host's driver libraries are added
        :param options: further options of ``apptainer exec``, before the image
        :param cwd: working directory inside; by default the caller's, if it exists
            there
        """
        argv = [self.path, "exec", *self.exec_flags, "--cleanenv", "--no-eval"]
        for item in binds:
            argv += ["--bind", item]
        if gpu is not None:
            argv.append(_GPU_OPTIONS[gpu])
        if cwd is not None:
            argv += ["--pwd", cwd]  # --cwd is newer than 1.1
        return [*argv, *options, str(image), *command]

    def build_argv(
        self,
        definition: Path,
        target: Path,
        *,
        binds: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> list[str]:
        """Argument list that builds the SIF ``target`` from ``definition``."""
        argv = [self.path, "build", *self.build_flags]
        for item in binds:
            argv += ["--bind", item]
        return [*argv, *options, str(target), str(definition)]

    def add_overlay_argv(self, sif: Path, layer: Path, machine: str) -> list[str]:
        """Argument list that adds a squashfs file to a SIF as an overlay.

        The later one lies on top. Without ``--groupid`` of the system partition
        (always 1) ``exec`` ignores it without a word.

        :param machine: as ``uname -m`` names it
        """
        kind = ["--datatype", "4", "--parttype", "4", "--partfs", "1", "--groupid", "1"]
        architecture = ["--partarch", str(SIF_ARCHITECTURES.get(machine, 0))]
        return [self.path, "sif", "add", *kind, *architecture, str(sif), str(layer)]

    def environment(
        self,
        base: Mapping[str, str] | None = None,
        *,
        inside: Mapping[str, str] | None = None,
        **extra: str,
    ) -> dict[str, str]:
        """Environment for a call: ``base`` (by default this process's) scrubbed.

        Removed is what would change Apptainer itself or leak into the container:
        ``APPTAINER*``, ``SINGULARITY*``, loader and Python paths, the session bus.

        :param inside: variables that the container sees, values byte for byte but
            for CR LF; ``PATH`` replaces the image's. See the module for names with
            a meaning of their own.
        :param extra: set for the call after scrubbing, such as ``APPTAINER_TMPDIR``
        :raises ValueError: a name that no shell could export
        """
        kept = {
            name: value
            for name, value in (os.environ if base is None else base).items()
            if name not in _SCRUBBED and not name.startswith(_SCRUBBED_PREFIXES)
        }
        for name, value in (inside or {}).items():
            if not is_exportable(name):
                raise ValueError(f"not a name of an environment variable: {name!r}")
            kept[f"APPTAINERENV_{name}"] = value
        return {**kept, **extra}


def is_exportable(name: str) -> bool:
    """Whether this can be the name of a variable that goes inside."""
    return _NAME.match(name) is not None


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """For containers that need no network: Apptainer passes all proxy variables on,
    whatever it is told, and their URLs may hold credentials."""
    return {n: v for n, v in environment.items() if not _PROXY.match(n)}


def _ask_version(path: str) -> str:
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"{path} does not run: {error}", code="apptainer-broken"
        ) from None
    if answer.returncode != 0:
        said = (answer.stderr or answer.stdout).strip()
        raise HostError(f"{path} does not run: {said}", code="apptainer-broken")
    return answer.stdout.strip()


def parse_version(path: str, answer: str) -> str:
    """The version in the answer of ``path --version``.

    :raises HostError: it is too old, or not Apptainer's answer
    """
    found = re.match(r"apptainer version ((\d+)\.(\d+)\S*)", answer)
    if found and (int(found[2]), int(found[3])) >= OLDEST:
        return found[1]
    raise HostError(
        f"{path} is not Apptainer 1.1 or newer: it says {answer!r}",
        hint="install Apptainer 1.1 or newer; SingularityCE is not supported",
        code="apptainer-too-old",
    )


def _effective_capabilities() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def _last_capability() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 40  # CAP_CHECKPOINT_RESTORE, the highest since Linux 5.9
