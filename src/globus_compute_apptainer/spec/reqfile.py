"""requirements.txt as pip reads it: includes, constraints, local projects. Pure.

Differs from the field ``pip`` in that there is a tree around it. Paths to projects
are relative to the root of the tree, and those after ``-r`` and ``-c`` to the file
that names them, as pip has it (the root is where repo2docker runs pip).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from globus_compute_apptainer.spec.items import MAX_ITEMS, requirement_lines
from globus_compute_apptainer.spec.listed import Listed, Listing
from globus_compute_apptainer.spec.refusal import Refusal, blame
from globus_compute_apptainer.spec.requirements import requirement
from globus_compute_apptainer.spec.tree import inside

if TYPE_CHECKING:
    from globus_compute_apptainer.spec.tree import Tree

MAX_FILES = 50
"""Files that one requirements.txt may include, directly or not."""

_INCLUDE = re.compile(r"(?:-r|--requirement)(?:\s*=\s*|\s+|(?<=-r))(?P<path>\S.*)")
_CONSTRAIN = re.compile(r"(?:-c|--constraint)(?:\s*=\s*|\s+|(?<=-c))(?P<path>\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)(?:\s*=\s*|\s+|(?<=-e))(?P<path>\S.*)")
_HASH = re.compile(r"\s+--hash(?:\s*=\s*|\s+)(\S+)")
# What pip-compile, pipenv and others write by themselves, and which changes nothing.
_PYPI = re.compile(
    r"(?:-i|--index-url)(?:\s*=\s*|\s+)https://pypi\.(?:org|python\.org)/simple/?"
)


def requirements_file(tree: Tree, path: str, where: str = "") -> Listed:
    """What the file asks for, with all that it includes.

    :param path: of the file, in the tree
    :param where: put before file names in errors
    :raises SpecError: naming file and line
    """
    reader = _Reader(tree, where)
    reader.read(path)
    return reader.listing.listed()


def requirement_entries(
    tree: Tree, entries: Iterable[tuple[str, str]], folder: str, where: str = ""
) -> Listed:
    """The same for entries that stand elsewhere, such as in an environment.yml.

    :param entries: ``(label for errors, entry)``
    :param folder: that paths are relative to, all of them
    """
    reader = _Reader(tree, where)
    for label, entry in entries:
        with blame(label, entry):
            reader.entry(entry, folder, projects_from=folder)
    return reader.listing.listed()


class _Reader:
    def __init__(self, tree: Tree, where: str) -> None:
        self._tree, self._where = tree, where
        self._seen: set[tuple[str, bool]] = set()
        self._entries = 0
        self.listing = Listing()

    def read(self, path: str, *, constraints: bool = False) -> None:
        """A file once, though it may be named many times."""
        if (path, constraints) in self._seen:
            return
        self._seen.add((path, constraints))
        if len(self._seen) > MAX_FILES:
            raise Refusal(f"includes more than {MAX_FILES} files")
        content = self._tree.text(path)
        folder = posixpath.dirname(path)
        for number, entry in requirement_lines(content):
            with blame(f"{self._where}{path}[line {number}]", entry):
                self.entry(entry, folder, constraints=constraints)

    def entry(
        self,
        entry: str,
        folder: str,
        *,
        constraints: bool = False,
        projects_from: str = "",
    ) -> None:
        self._count()
        if _PYPI.fullmatch(entry):
            self.listing.notes.add("the endpoint's own package index is used")
        elif included := _INCLUDE.fullmatch(entry):
            self._include(included["path"], folder, constraints=constraints)
        elif included := _CONSTRAIN.fullmatch(entry):
            self._include(included["path"], folder, constraints=True)
        elif constraints:
            self.listing.constraints.add(requirement(_HASH.sub("", entry)))
        else:
            self._package(entry, projects_from)

    def _package(self, entry: str, projects_from: str) -> None:
        editable = _EDITABLE.fullmatch(entry)
        named = editable["path"].strip() if editable else entry
        if not self._is_local(named, projects_from):
            hashes = _HASH.findall(entry)
            self.listing.require(requirement(_HASH.sub("", entry)), hashes)
            return
        local = named.removeprefix("file:")
        if not local.startswith(("/", "~")):
            local = posixpath.join(projects_from, local)
        self.listing.projects.add(self._tree.project(local))
        if editable:
            self.listing.notes.add(
                f"{named[:80]} is installed as it is now; later changes do not show"
            )

    def _is_local(self, named: str, folder: str) -> bool:
        """As pip decides: by how it is written, and by what is there."""
        if named.startswith((".", "/", "~", "file:")):
            return True
        path = posixpath.normpath(posixpath.join(folder, named.partition("[")[0]))
        archive = path.endswith((".whl", ".tar.gz", ".zip"))
        return (archive or "/" in named) and self._tree.has(path)

    def _include(self, path: str, folder: str, *, constraints: bool) -> None:
        path = path.strip().strip("\"'")
        if "://" in path:
            raise Refusal("includes a file by its URL", "put the file beside this one")
        self.read(inside(posixpath.join(folder, path)), constraints=constraints)

    def _count(self) -> None:
        self._entries += 1
        if self._entries > MAX_ITEMS:
            raise Refusal(f"is one of more than {MAX_ITEMS} entries")
