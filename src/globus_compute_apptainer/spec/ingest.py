"""A directory read as repo2docker reads it: which files count, and what they ask for.

Pure; runs in the endpoint process and in ``gc-apptainer``. The order in which
repo2docker tries its build packs decides: the first of these that is there is the
environment, and the others are not read.

1. ``Dockerfile``, ``Project.toml``, ``REQUIRE``, ``default.nix``, ``DESCRIPTION``, a
   ``runtime.txt`` that says ``r-…``: no image is built here (:mod:`.foreign`)
2. ``environment.yml``
3. ``Pipfile.lock``, else ``Pipfile``
4. ``requirements.txt``, ``runtime.txt``, and the project itself (``setup.py``, or
   ``pyproject.toml`` with ``[project]`` and ``[build-system]``)

``apt.txt``, ``postBuild`` and ``start`` count beside each. If there is a directory
``binder`` or ``.binder``, all are looked for there and only there, and the project is
not installed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from globus_compute_apptainer.spec import fields, foreign
from globus_compute_apptainer.spec.apt import package
from globus_compute_apptainer.spec.conda import Conda, environment
from globus_compute_apptainer.spec.document import tree as yaml_tree
from globus_compute_apptainer.spec.items import checked, package_lines
from globus_compute_apptainer.spec.listed import Listed, toml
from globus_compute_apptainer.spec.pipfile import pipfile, pipfile_lock
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind
from globus_compute_apptainer.spec.reqfile import requirement_entries, requirements_file
from globus_compute_apptainer.spec.runtime import allows, runtime
from globus_compute_apptainer.spec.tree import Tree

if TYPE_CHECKING:
    from typing import Any

#: Files that say which packages there are to be: the first one counts.
ENVIRONMENTS = (
    "environment.yml",
    "environment.yaml",
    "Pipfile.lock",
    "Pipfile",
    "requirements.txt",
)
FOLDERS = ("binder", ".binder")

_R_OPTIONS = "--no-save --no-restore --no-init-file --no-environ"


@dataclass(frozen=True)
class Ingested:
    """What a directory asks for; each part in the normal form of its field.

    :param python: minor version of Python (``3.11``); None: any
    :param post_build: whether there is a ``postBuild`` to run
    :param start: whether there is a ``start``, to start every process through
    :param projects: what to install from the tree itself, not editable: ``.`` or
        ``./PATH``, perhaps with ``[extras]``
    :param constraints: requirements that hold for whatever gets installed
    :param hashes: ``(requirement, (algorithm:hex, …))``: the files that it may be;
        where there are any, ``pip`` is a complete list
    :param install_r: whether there is an ``install.R`` to run
    :param folder: ``binder``, ``.binder``, or empty: where all that was looked for
    :param read: the files that counted, relative to the root
    :param notes: sentences for the log
    """

    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    conda: Conda | None = None
    python: str | None = None
    post_build: bool = False
    start: bool = False
    projects: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    hashes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    install_r: bool = False
    folder: str = ""
    read: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def install_project(self) -> bool:
        """Whether anything of the tree itself is to be installed."""
        return bool(self.projects)

    @property
    def install_steps(self) -> tuple[str, ...]:
        """Shell lines to run at the end of the build, but before those of the spec."""
        if not self.install_r:
            return ()
        script = self._path("install.R")
        return ("cd /payload", f"Rscript {_R_OPTIONS} {script}", "cd /")

    def _path(self, name: str) -> str:
        return posixpath.join(self.folder, name)


def ingest(
    files: Mapping[str, str],
    names: Collection[str] | None = None,
    *,
    where: str = "",
    given: Collection[str] = (),
) -> Ingested:
    """Read a directory.

    :param files: the texts of its files, by path relative to it. One that is never
        asked for may be missing, or fail when it is read (:class:`.Refusal`)
    :param names: paths of all files and directories; by default those of ``files``
    :param where: put before file names in errors
    :param given: names of files that the spec brings itself. With an environment
        among them, files that no image is built from are passed over, with a note
    :raises SpecError: naming the file, and the line where there is one
    """
    return _Directory(Tree(files, names), where, given).read()


class _Directory:
    """One directory that is being read."""

    def __init__(self, tree: Tree, where: str, given: Collection[str]) -> None:
        self._tree, self._where, self._given = tree, where, given
        self._folder = self._find_folder()
        self._notes: list[str] = []
        self._read: list[str] = []

    def read(self) -> Ingested:
        self._check_foreign()
        found = self._environment()
        return replace(
            found,
            apt=self._apt(),
            post_build=self._counts("postBuild"),
            start=self._counts("start"),
            install_r=self._counts("install.R"),
            folder=self._folder,
            read=tuple(sorted({*found.read, *self._read})),
            notes=tuple(dict.fromkeys(note for note in self._notes if note)),
        )

    @property
    def _overrides(self) -> bool:
        """Whether the spec itself brings an environment."""
        return any(own in self._given for own in (*ENVIRONMENTS, "pyproject.toml"))

    def _find_folder(self) -> str:
        found = [name for name in FOLDERS if self._tree.is_folder(name)]
        if len(found) > 1:
            hint = "keep one of them"
            raise Refusal(
                "has both a directory 'binder' and a directory '.binder'", hint
            ).at(self._where.rstrip(".") or "the payload", "")
        return found[0] if found else ""

    def _at(self, name: str) -> str:
        return posixpath.join(self._folder, name)

    def _label(self, name: str) -> str:
        return f"{self._where}{self._at(name)}"

    def _counts(self, name: str) -> bool:
        if not self._tree.has(self._at(name)):
            return False
        self._read.append(self._at(name))
        return True

    def _check_foreign(self) -> None:
        name = foreign.found_in(self._tree, self._folder)
        if not name:
            return
        if self._overrides:
            self._notes.append(
                f"{name} is not read, since the spec brings its own files"
            )
            return
        raise foreign.refusal(name).at(self._label(name), "")

    def _environment(self) -> Ingested:
        present = [name for name in ENVIRONMENTS if self._tree.has(self._at(name))]
        for name in present[1:]:
            self._notes.append(f"{name} is not read, since {present[0]} is there")
        first = present[0] if present else ""
        if first.startswith("environment"):
            return self._conda(first)
        if first.startswith("Pipfile"):
            return self._pipfile(first)
        return self._python(first)

    def _conda(self, name: str) -> Ingested:
        self._runtime_ignored(name)
        label = self._label(name)
        with blame(label):
            value = yaml_tree(self._tree.text(self._at(name)))
            value = {} if value is None else value
            if not isinstance(value, dict):
                raise Refusal(f"holds {kind(value)}; expected an object")
        rest, entries = _split_pip(label, value)
        found = environment(label, rest)
        listed = requirement_entries(self._tree, entries, self._folder, self._where)
        whole = self._from_listed(name, listed)
        pip = tuple(sorted({*found.pip, *listed.pip}))
        return replace(whole, pip=pip, conda=found.conda, python=found.python)

    def _pipfile(self, name: str) -> Ingested:
        self._runtime_ignored(name)
        reader = pipfile_lock if name.endswith(".lock") else pipfile
        listed, python = reader(self._tree, self._at(name), self._where)
        if (
            python is None
            and name.endswith(".lock")
            and self._tree.has(self._at("Pipfile"))
        ):
            python = pipfile(self._tree, self._at("Pipfile"), self._where)[1]
        with blame(self._label(name), python):
            python = fields.python(self._label(name), python) if python else None
        return replace(self._from_listed(name, listed), python=python)

    def _python(self, name: str) -> Ingested:
        listed = Listed()
        if name:
            with blame(self._label(name)):
                listed = requirements_file(self._tree, self._at(name), self._where)
        found = self._from_listed(name, listed)
        python = self._runtime()
        pyproject = self._pyproject()
        self._check_python(pyproject, python)
        if self._is_project(pyproject) and not _has_root(found.projects):
            found = replace(found, projects=(".", *found.projects))
        return replace(found, python=python)

    def _from_listed(self, name: str, listed: Listed) -> Ingested:
        self._notes += listed.notes
        bare = {*listed.pip} - {named for named, _ in listed.hashes}
        if listed.hashes and bare:
            reason = f"has hashes, but none for {min(bare):.80}"
            raise Refusal(reason, "as pip has it: for all packages, or for none").at(
                self._label(name), ""
            )
        return Ingested(
            pip=listed.pip,
            projects=listed.projects,
            constraints=listed.constraints,
            hashes=listed.hashes,
            read=(self._at(name),) if name else (),
        )

    def _apt(self) -> tuple[str, ...]:
        if not self._counts("apt.txt"):
            return ()
        label = self._label("apt.txt")
        with blame(label):
            content = self._tree.text(self._at("apt.txt"))
        return checked(label, content, package_lines, package)

    def _runtime(self) -> str | None:
        label, content = self._runtime_text()
        if content is None or self._is_foreign_r(content):
            return None
        self._read.append(self._at("runtime.txt"))
        with blame(label, content):
            minor, note = runtime(content)
            self._notes.append(note)
        return fields.python(label, minor) if minor else None

    def _runtime_ignored(self, environment: str) -> None:
        """repo2docker sets up R first, and else does not read it."""
        label, content = self._runtime_text()
        if content is None or self._is_foreign_r(content):
            return
        if content.startswith("r-"):
            with blame(label, content):
                runtime(content)
        self._notes.append(f"runtime.txt is not read, since {environment} is there")

    def _runtime_text(self) -> tuple[str, str | None]:
        label = self._label("runtime.txt")
        if not self._tree.has(self._at("runtime.txt")):
            return label, None
        with blame(label):
            return label, self._tree.text(self._at("runtime.txt")).strip()

    def _is_foreign_r(self, content: str) -> bool:
        """Whether it asks for R, and the spec brings an environment in its place."""
        if not (content.startswith("r-") and self._overrides):
            return False
        self._notes.append("runtime.txt is not read, since the spec brings its own")
        return True

    def _pyproject(self) -> dict[str, Any]:
        if self._folder or not self._tree.has("pyproject.toml"):
            return {}
        with blame(f"{self._where}pyproject.toml"):
            return toml(self._tree.text("pyproject.toml"))

    def _is_project(self, pyproject: Mapping[str, Any]) -> bool:
        if self._folder:
            return False
        if self._tree.has("setup.py"):
            self._read.append("setup.py")
            return True
        if "project" in pyproject and "build-system" in pyproject:
            self._read.append("pyproject.toml")
            return True
        if pyproject:
            self._notes.append(
                "the project is not installed: pyproject.toml has not both [project] "
                "and [build-system]"
            )
        return False

    def _check_python(self, pyproject: Mapping[str, Any], python: str | None) -> None:
        """:raises SpecError: runtime.txt and pyproject.toml do not agree"""
        project = pyproject.get("project")
        wanted = project.get("requires-python") if isinstance(project, dict) else None
        if python is None or not isinstance(wanted, str):
            return
        with blame(f"{self._where}pyproject.toml", wanted):
            if not allows(wanted, python):
                reason = f"does not allow Python {python}, which runtime.txt names"
                raise Refusal(reason, "change one of them")


def _has_root(projects: tuple[str, ...]) -> bool:
    return any(project.partition("[")[0] == "." for project in projects)


def _split_pip(
    label: str, value: dict[str, Json]
) -> tuple[dict[str, Json], list[tuple[str, str]]]:
    """An environment.yml without its nested pip entries, and these, with labels."""
    dependencies = value.get("dependencies")
    if not isinstance(dependencies, list):
        return value, []
    rest: list[Json] = []
    entries: list[tuple[str, str]] = []
    for number, entry in enumerate(dependencies):
        nested = (
            entry.get("pip") if isinstance(entry, dict) and len(entry) == 1 else None
        )
        if not isinstance(nested, list):
            rest.append(entry)
            continue
        for place, one in enumerate(nested):
            where = f"{label}.dependencies[{number}].pip[{place}]"
            if not isinstance(one, str) or not one.strip():
                raise Refusal("is not a requirement").at(where, "")
            entries.append((where, one.strip()))
    return {**value, "dependencies": rest}, entries
