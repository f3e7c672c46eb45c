"""A tree of files that is looked at by name, wherever it really is. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping

from globus_compute_apptainer.spec.refusal import Refusal

_LOCAL = re.compile(r"(?P<path>[^\[\];]+?)\s*(?P<extras>\[[A-Za-z0-9._, -]+\])?")
_EXTRA = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PATH = re.compile(r"[A-Za-z0-9._+@ /-]+")
_DISTRIBUTIONS = (".whl", ".tar.gz", ".zip")


class Tree:
    """Texts by path relative to a root, and the names of all that is there.

    :param texts: of the files that may be read; reading one may raise
        :class:`.Refusal`
    :param names: paths of every file and directory; by default those of ``texts``
    """

    def __init__(
        self, texts: Mapping[str, str], names: Collection[str] | None = None
    ) -> None:
        self.texts = texts
        self._names = _with_parents(texts) if names is None else names

    def has(self, path: str) -> bool:
        """Whether there is anything of that name."""
        return path in self._names or path in self.texts

    def is_folder(self, path: str) -> bool:
        return path in self._names and path not in self.texts

    def text(self, path: str) -> str:
        """:raises Refusal: it is not a file, or cannot be read"""
        if path not in self.texts:
            raise Refusal(f"names {path!r:.80}, which is not a file there")
        return self.texts[path]

    def _is_project(self, folder: str) -> bool:
        prefix = "" if folder == "." else f"{folder}/"
        return any(
            self.has(f"{prefix}{name}") for name in ("pyproject.toml", "setup.py")
        )

    def project(self, written: str) -> str:
        """The normal form of a path to a project or distribution of this tree.

        :param written: ``.``, ``./PATH`` or ``PATH``, perhaps with ``[extras]``
        :raises Refusal: it is not below the root, or there is no such thing
        """
        found = _LOCAL.fullmatch(written.strip().removeprefix("file:"))
        if found is None or not _PATH.fullmatch(found["path"]):
            raise Refusal("is a path that is not accepted", "as in . or ./PATH[EXTRA]")
        path = inside(found["path"])
        if path != "." and not self.has(path):
            raise Refusal(f"names {path!r:.80}, which is not there")
        if not (path.endswith(_DISTRIBUTIONS) or self._is_project(path)):
            reason = f"names {path!r:.80}, which has no pyproject.toml or setup.py"
            raise Refusal(reason)
        extras = _extras(found["extras"] or "")
        return f"{'.' if path == '.' else './' + path}{extras}"


def inside(path: str) -> str:
    """A relative path in its shortest form.

    :raises Refusal: it is absolute, or leads out of its root
    """
    if path.startswith(("/", "~")):
        hint = "write it relative to the root of the repository"
        raise Refusal("is an absolute path", hint)
    short = posixpath.normpath(path)
    if short == ".." or short.startswith("../"):
        raise Refusal("is a path out of the repository")
    return short


def _extras(written: str) -> str:
    names = [name.strip() for name in written.strip("[]").split(",") if name.strip()]
    if not all(map(_EXTRA.fullmatch, names)):
        raise Refusal("has extras that no project can have", "as in .[test]")
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    return f"[{','.join(sorted(normal))}]" if normal else ""


def _with_parents(texts: Mapping[str, str]) -> set[str]:
    names = set(texts)
    for path in texts:
        while path := posixpath.dirname(path):
            if path in names:
                break
            names.add(path)
    return names
