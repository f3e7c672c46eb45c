"""Packages that must be built: by uv inside the image, over base and lower layers.

Runs in the endpoint process; what it starts runs code of packages, as this user, and
sees of the host only this build's own kit: the site's settings, and a cache that no
other build ever gets. What is built there may say anything of itself, so it is looked
at by its file names alone, and its layer is kept under the requirements that led to it
and not only under what it says that it is.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.apptainer import bind
from globus_compute_apptainer.build.python import resolution, standins, uv, venv
from globus_compute_apptainer.build.python.uv import COMPILE, INSTALL, Follower
from globus_compute_apptainer.build.system.kit import read_plain
from globus_compute_apptainer.build.system.plan import KIT

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Python
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.layers import Below
    from globus_compute_apptainer.build.python.resolution import Pin
    from globus_compute_apptainer.build.system.kit import Kit

ALONE: Final = ("--containall",)
"""Of the host, nothing but what is bound; its processes end with it."""

NO_LAYER: Final = 76
NO_UV: Final = 77

# $1 markers of layers follow, then the command, whose first word is uv.
_CHECKED: Final = """
n=$1; shift
while [ "$n" -gt 0 ]; do [ -e "$1" ] || exit 76; shift; n=$((n-1)); done
"$1" --version >/dev/null 2>&1 || exit 77
exec "$@"
"""

_SOURCES: Final = ("pyproject.toml", "setup.py", "setup.cfg")


@dataclass(frozen=True)
class Inside:
    """The way in a container.

    :param kit: laid out for this
    :param program: uv that runs inside
    :param env: where the environment is in the image
    :param project: a source tree from which is installed too
    :param projects: what of it: ``.`` or ``./PATH``, perhaps with ``[extras]``
    """

    job: Job
    below: Below
    python: Python
    kit: Kit
    program: Path
    env: str
    project: Path | None = None
    projects: tuple[str, ...] = (".",)
    notes: list[str] = field(default_factory=list)

    name = "inside"

    @property
    def root(self) -> Path:
        return self.kit.folder / "root"

    def made_of(self) -> Mapping[str, Any]:
        """What decides the content, beside the packages."""
        return {
            "below": self.below.keys,
            "project": tree_digest(self.project) if self.project else None,
            "projects": self.projects if self.project else (),
            "build_env": self.job.image.build_env,
        }

    def resolve(
        self, requirements: Sequence[str], constraints: Sequence[str] = ()
    ) -> tuple[Pin, ...]:
        """Everything that the requirements and the project need.

        :raises BuildError: it cannot be satisfied, or metadata cannot be built
        """
        for name, lines in (("wanted", requirements), ("limits", constraints)):
            text = "".join(f"{line}\n" for line in lines)
            (self.kit.folder / f"kit/{name}.in").write_text(text, "utf-8")
        lock = self.kit.work / "lock.txt"
        lock.write_text(standins.preferences(self.python.packages), "utf-8")
        self._lay_stand_ins()
        argv = [*COMPILE, f"{KIT}/wanted.in", *self._project_sources()]
        argv += ["--constraint", f"{KIT}/limits.in"]
        argv += ["--output-file", f"{KIT}/work/lock.txt"]
        argv += ["--python", self.python.executable]
        follower = self._uv(argv, Follower(self.job), links=f"file://{KIT}/standins")
        self.notes.extend(resolution.yanked(follower.said))
        try:
            return resolution.parse_pins(read_plain(lock))
        except (OSError, ValueError) as error:
            raise self.job.error(f"what was resolved cannot be read: {error}") from None

    def install(self, pins: Sequence[Pin], env: Path) -> None:
        """Fill ``env``, bound to its place in the image.

        :raises BuildError: something cannot be had or built
        """
        env.mkdir(parents=True)
        venv.lay_image(env, self.python)
        binds = [bind(env, self.env)]
        python = ["--python", f"{self.env}/bin/python"]
        if pins:
            (self.kit.folder / "kit/install.txt").write_text(
                "".join(f"{pin.line}\n" for pin in pins), "utf-8"
            )
            argv = [*INSTALL, *python, *uv.hash_options(pins)]
            argv += ["--requirement", f"{KIT}/install.txt"]
            self._uv(argv, Follower(self.job, len(pins)), binds)
        if self.project is not None:
            folders = [folder for folder, _ in self._wanted_projects()]
            argv = [*INSTALL, *python, *folders]
            self._uv(argv, Follower(self.job, len(folders)), binds)

    def _uv(
        self,
        argv: Sequence[str],
        follower: Follower,
        binds: Sequence[str] = (),
        links: str = "",
    ) -> Follower:
        ended = self.job.attempt(
            self._contained(argv, binds),
            env=self._environment(links),
            shown=f"uv {' '.join(argv[:2])}",
            on_line=follower.line,
        )
        if ended.returncode == NO_LAYER:
            raise self.job.error(
                "the layers of this image are not shown on this machine",
                code="overlay-unavailable",
            )
        if ended.returncode == NO_UV:
            raise self.job.error(
                "packages must be built in the base image, and uv does not run there",
                code="no-pip",
                hint="ask for versions that have wheels, or choose another base image",
            )
        if not ended.ok:
            raise self.job.failed()
        return follower

    def _contained(self, argv: Sequence[str], binds: Sequence[str]) -> list[str]:
        markers = [layer.marker for layer in self.below.layers]
        options = ["--no-index"] if self.job.site.no_index else []
        command = [*markers, f"{KIT}/uv", *argv, *options]
        work = self.kit.folder / "contained"
        work.mkdir(exist_ok=True)
        return self.job.apptainer.exec_argv(
            self.below.sif,
            ["/bin/sh", "-c", _CHECKED, "sh", str(len(markers)), *command],
            binds=[*self.kit.binds, *self._program_bind(), *binds],
            options=[*self.below.overlays, *ALONE, "--workdir", str(work)],
            cwd="/",
        )

    def _environment(self, links: str) -> dict[str, str]:
        inside = {
            **dict(self.job.image.build_env),
            **self.job.site.variables,
            **uv.PLAIN,
        }
        return self.job.apptainer.environment(inside=uv.with_links(inside, links))

    def _program_bind(self) -> list[str]:
        (self.kit.folder / "kit/uv").touch()
        return [bind(self.program, f"{KIT}/uv", read_only=True)]

    def _lay_stand_ins(self) -> None:
        folder = self.kit.folder / "kit/standins"
        folder.mkdir(exist_ok=True)
        for name, content in standins.stand_ins(self.python.packages).items():
            (folder / name).write_bytes(content)

    def _wanted_projects(self) -> list[tuple[str, list[str]]]:
        """Directories, as they are inside, and the extras wanted of each."""
        found = []
        for wanted in self.projects:
            path, _, extras = wanted.partition("[")
            folder = posixpath.normpath(f"{self._project_inside()}/{path}")
            found.append((folder, [e for e in extras.rstrip("]").split(",") if e]))
        return found

    def _project_sources(self) -> list[str]:
        """The files that say what the projects need, and options for their extras."""
        if self.project is None:
            return []
        argv = []
        for folder, extras in self._wanted_projects():
            outside = (
                self.kit.work
                / "project"
                / posixpath.relpath(folder, self._project_inside())
            )
            names = [name for name in _SOURCES if (outside / name).is_file()]
            if not names:
                raise self.job.error(
                    "the source tree is not a Python project",
                    hint=f"it has none of {', '.join(_SOURCES)}",
                )
            argv += [f"{folder}/{names[0]}"]
            for extra in extras:
                argv += ["--extra", extra.strip()]
        return argv

    def _project_inside(self) -> str:
        """Builds write into their sources: they get a copy."""
        copy = self.kit.work / "project"
        if self.project is not None and not copy.exists():
            shutil.copytree(self.project, copy, symlinks=True)
        return f"{KIT}/work/project"


def tree_digest(top: Path) -> str:
    """Of names, kinds, modes and contents of a directory tree."""
    told = hashlib.sha256()
    for folder, names, files in os.walk(top):
        names.sort()
        for name in sorted([*files, *names]):
            path = Path(folder, name)
            told.update(f"{path.relative_to(top)}\0".encode(errors="surrogateescape"))
            if path.is_symlink():
                told.update(b"link " + os.fsencode(path.readlink()))
            elif path.is_file():
                executable = path.stat().st_mode & 0o111
                told.update(b"program " if executable else b"file ")
                told.update(hashlib.sha256(path.read_bytes()).digest())
            told.update(b"\0")
    return "sha256:" + told.hexdigest()
