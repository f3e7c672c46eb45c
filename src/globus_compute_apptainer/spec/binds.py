"""Directories and files of the host that a task sees: the field ``binds``. Pure."""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from globus_compute_apptainer.spec.items import bounded
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, kind, text

MAX_BINDS = 64

# Apptainer's own places, and the one where this package puts its agent.
_RESERVED = ("/proc", "/sys", "/dev", "/.gca", "/.singularity.d")

# ',' and '"' separate and quote in Apptainer's --bind, ':' separates here; the others
# promise an expansion that does not happen.
_REFUSED = frozenset(",:\"'\\$*?`")
_LONGEST = 1024
_MODES = ("ro", "rw")


class Bind(NamedTuple):
    """One bind; both paths are absolute and normal.

    :param mode: ``ro`` or ``rw`` (the default, as in Apptainer)
    """

    source: str
    target: str
    mode: str

    def __str__(self) -> str:
        return f"{self.source}:{self.target}:{self.mode}"


def bind(entry: str) -> Bind:
    """A bind from ``source[:target[:ro|rw]]``.

    :raises Refusal: relative paths, ``..``, unusual characters, or a target that
        would cover what Apptainer or the task itself needs
    """
    source, *more = entry.split(":")
    target = more[0] if more else source
    mode = more[1] if len(more) > 1 else "rw"
    if len(more) > 2 or mode not in _MODES:
        raise Refusal("is not SOURCE[:TARGET[:ro|rw]]")
    made = Bind(_path(source, "source"), _path(target, "target"), mode)
    if made.target == "/" or inside(made.target, _RESERVED):
        reason = "has a target that is reserved"
        raise Refusal(reason, "not / nor under " + ", ".join(_RESERVED))
    return made


def binds(field: str, value: Json) -> tuple[str, ...]:
    """The binds of a spec as ``source:target:mode``, outer targets before inner ones.

    :raises SpecError: naming the entry; also for two binds with one target
    """
    if not isinstance(value, list):
        with blame(field, value):
            raise Refusal(f"is {kind(value)}; expected a list of strings")
    bounded(field, len(value), MAX_BINDS)
    targets: dict[str, Bind] = {}
    for number, entry in enumerate(value):
        with blame(f"{field}[{number}]", entry):
            made = bind(text(entry))
            if targets.setdefault(made.target, made) != made:
                raise Refusal("has the target of another bind")
    return tuple(str(targets[target]) for target in sorted(targets))


def inside(path: str, prefixes: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of ``prefixes`` or below it, part by part.

    Both are compared as written: symbolic links are not followed.
    """
    roots = (posixpath.normpath(prefix).rstrip("/") for prefix in prefixes if prefix)
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def _path(written: str, which: str) -> str:
    if not written.startswith("/"):
        raise Refusal(f"has a {which} that is not an absolute path")
    if len(written) > _LONGEST or not written.isprintable():
        raise Refusal(f"has a {which} that is too long or not printable")
    refused = _REFUSED.intersection(written)
    if refused:
        reason = f"has {min(refused)!r} in its {which}, which is not accepted"
        raise Refusal(reason, "nothing is expanded in a bind")
    if ".." in written.split("/"):
        raise Refusal(f"has '..' in its {which}, which is not accepted")
    return posixpath.normpath("/" + written.lstrip("/"))
