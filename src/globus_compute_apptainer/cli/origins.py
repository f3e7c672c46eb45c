"""Specs from what people already have: files and directories known by their names.

Runs in ``gc-apptainer``; reads them as the client's own helpers do, so that a spec
made here is the one that a task would bring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer import client
from globus_compute_apptainer.client.outcome import refuse, text_of
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.ingest import Ingested, ingest
from globus_compute_apptainer.spec.refusal import Refusal
from globus_compute_apptainer.spec.sources import FILES

KINDS: Final = (
    "requirements*.txt, environment.yml, pyproject.toml, uv.lock, pylock.toml, a Python"
    " script with a # /// script block, or a directory as repo2docker reads it"
)
_MOST_NAMES: Final = 20_000
_ALONE: Final = ("uv.lock", "pylock.toml", "pyproject.toml")
"""Read when they are named, but not by repo2docker (or only if they build)."""
_SKIPPED: Final = frozenset({".git", ".venv", "__pycache__", "node_modules"})


@dataclass(frozen=True)
class Choices:
    """What may be chosen beside the file itself.

    :param python: minor version, where the file lets it
    :param skip: packages, or settings of uv, to do without
    """

    python: str | None = None
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


def is_known(path: Path) -> bool:
    """Whether a path's name says that it is no spec, but something to make one of."""
    return path.is_dir() or _reader(path) is not None


def spec(path: Path, choices: Choices | None = None) -> dict[str, Any]:
    """The spec that a file or directory means.

    :raises SpecError: it is of no known kind, or has what a spec cannot carry
    """
    read = _directory if path.is_dir() else _reader(path)
    if read is None:
        raise SpecError(
            f"it cannot be told by its name what {path} is",
            hint=f"known are {KINDS}",
            code="spec-unreadable",
        )
    chosen = choices or Choices()
    refuse_choices(chosen, str(path), _TAKES[read])
    return read(path, chosen)


def refuse_choices(
    choices: Choices, what: str, takes: frozenset[str] = frozenset()
) -> None:
    """Nothing that was chosen is passed over in silence.

    :param takes: names of the choices that mean something for ``what``
    :raises SpecError: others were made
    """
    made = [name for name, value in vars(choices).items() if value]
    useless = [f"--{name.removesuffix('s')}" for name in made if name not in takes]
    if useless:
        raise SpecError(
            f"{' and '.join(useless)} cannot be used with {what:.80}",
            hint="write there what you need",
            code="spec-unreadable",
        )


Reader = Callable[[Path, Choices], dict[str, Any]]


def _reader(path: Path) -> Reader | None:
    return next((read for name, read in _READERS if name.fullmatch(path.name)), None)


def _requirements(path: Path, choices: Choices) -> dict[str, Any]:
    return client.from_requirements(path, python=choices.python, skip=choices.skip)


def _environment(path: Path, choices: Choices) -> dict[str, Any]:
    found = {"conda": text_of(path), "python": choices.python}
    return {name: value for name, value in found.items() if value}


def _project(path: Path, choices: Choices) -> dict[str, Any]:
    return client.from_pyproject(
        path,
        python=choices.python,
        extras=choices.extras,
        groups=choices.groups,
        ignore=choices.skip,
    )


def _lock(path: Path, choices: Choices) -> dict[str, Any]:
    return client.from_lock(
        path,
        python=choices.python,
        extras=choices.extras,
        groups=choices.groups,
        skip=choices.skip,
    )


def _script(path: Path, choices: Choices) -> dict[str, Any]:
    return client.from_script(path, python=choices.python, ignore=choices.skip)


_READERS: Final[tuple[tuple[re.Pattern[str], Reader], ...]] = (
    (re.compile(r"requirements.*\.txt|.*requirements\.txt"), _requirements),
    (re.compile(r"environment\.ya?ml"), _environment),
    (re.compile(r"pyproject\.toml"), _project),
    (re.compile(r"uv\.lock|.*\.py\.lock|pylock\.([^.]+\.)?toml"), _lock),
    (re.compile(r".*\.py"), _script),
)


def _directory(path: Path, choices: Choices) -> dict[str, Any]:
    """The repo2docker files of a directory, to be read again where they arrive."""
    texts = _Texts(path)
    found = ingest(texts, texts.names, where=f"{path}/")
    refuse(
        [f"the project {project}" for project in found.projects],
        str(path),
        "push it to a git host and give payload_url: git+https://…; or put what tasks"
        " need into a directory binder/, then the project is not installed",
    )
    fields = _fields(found, texts)
    if not fields:
        raise _nothing(path)
    if choices.python:
        fields["python"] = choices.python
    return fields


def _nothing(path: Path) -> SpecError:
    """A directory of which repo2docker would make an empty image."""
    also = [name for name in _ALONE if (path / name).is_file()]
    hint = f"gc-apptainer build {path / also[0]}" if also else ", ".join(FILES)
    but = f", as repo2docker reads it; {also[0]} by itself can be read" if also else ""
    return SpecError(
        f"{path} has none of the files that say what an image needs{but}",
        hint=hint,
        code="spec-unreadable",
    )


def _fields(found: Ingested, texts: Mapping[str, str]) -> dict[str, Any]:
    """As files, where none of them includes another one."""
    named = {path.rpartition("/")[2]: texts[path] for path in found.read}
    environment = named.get("requirements.txt", "")
    if not re.search(r"^\s*(-r|--req|-c|--con)", environment, re.MULTILINE):
        return {"files": named} if named else {}
    kept = {name: named[name] for name in named if name != "requirements.txt"}
    refuse(
        [f"{name} of {names[0]}" for name, *names in found.hashes[:1]]
        + [f"the constraint {line}" for line in found.constraints],
        "requirements.txt",
        "write the included files into it",
    )
    given = {"pip": list(found.pip), "files": kept}
    return {name: value for name, value in given.items() if value}


_TAKES: Final[Mapping[Reader, frozenset[str]]] = {
    _requirements: frozenset({"python", "skip"}),
    _environment: frozenset({"python"}),
    _project: frozenset({"python", "extras", "groups", "skip"}),
    _lock: frozenset({"python", "extras", "groups", "skip"}),
    _script: frozenset({"python", "skip"}),
    _directory: frozenset({"python"}),
}


class _Texts(Mapping[str, str]):
    """The files of a directory, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.names = set(_names(root))

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        try:
            return (self._root / name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise Refusal("cannot be read as UTF-8 text") from None

    def __contains__(self, name: object) -> bool:
        return name in self.names and (self._root / str(name)).is_file()

    def __iter__(self) -> Iterator[str]:
        return (name for name in sorted(self.names) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _names(root: Path) -> Iterator[str]:
    """Paths of files and directories below ``root``, the first so many."""
    count = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in (*folders, *sorted(files)):
            count += 1
            if count > _MOST_NAMES:
                return
            yield Path(folder, name).relative_to(root).as_posix()
