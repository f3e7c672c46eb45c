"""Tasks that wait for an image, on disk, so that they outlive the endpoint process.

Runs in the endpoint process. One file for each task, in a directory that only this
user can enter::

    <endpoint directory>/waiting_tasks/
        6f1c….0        a task; the number counts how often it was resubmitted
        .6f1c…         being written
        unreadable/    what could not be read, for a person to look at

Guarantees: a file is there whole or not at all, whenever the process is killed. It is
readable by this user only.

Non-guarantees: nothing is flushed to the disk, so that a machine that loses power may
lose the tasks of its last seconds; what it leaves damaged is recognised. One process
uses the directory at a time: upstream's pid file sees to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

FOLDER: Final = "waiting_tasks"
ASIDE: Final = "unreadable"
_FORMAT: Final = 1
_DAMAGED: Final = (ValueError, KeyError, TypeError, RecursionError)
_UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NAME: Final = re.compile(rf"(?P<task>{_UUID})\.(?P<attempt>\d+)")


@dataclass(frozen=True)
class Entry:
    """A task as it arrived: what :meth:`.engine.ApptainerEngine.submit` was given.

    :param attempt: how often it was taken from the journal, this time included
    """

    task_id: uuid.UUID
    function_id: uuid.UUID | None
    packed_task: bytes
    resource_specification: dict[str, Any]
    result_serializers: list[str] | None
    attempt: int = 0


class Journal:
    """The waiting tasks of one endpoint; safe between threads.

    :param folder: made when it is first needed
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[uuid.UUID, Path] = {}
        self._failing = False

    def keep(self, entry: Entry) -> None:
        """Write a task down, unless it is there. A task that cannot be written down
        is logged and waits without: a full disk stops no task."""
        if entry.task_id in self._paths:
            return
        path = self._folder / f"{entry.task_id}.{entry.attempt}"
        try:
            _write_privately(path, self._folder / f".{entry.task_id}", _encoded(entry))
        except (OSError, TypeError, ValueError) as error:
            if not self._failing:  # one line, not one for each task
                log.warning(
                    "tasks that wait for an image cannot be written down, and would"
                    " be lost if this process were killed: %s",
                    error,
                )
            self._failing = True
            return
        self._failing = False
        self._paths[entry.task_id] = path

    def forget(self, task_id: uuid.UUID) -> None:
        """Remove a task that was handed over or answered; fine if it is not there."""
        path = self._paths.pop(task_id, None)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def recover(self) -> Iterator[Entry]:
        """The tasks that an earlier process left, in the order of their arrival; to be
        called once, before any task is kept.

        Each is counted as one attempt more *before* it is read, so that one which
        brings this process down is not tried for ever. What cannot be read is put
        aside and logged.
        """
        for name in self._left():
            found = _NAME.fullmatch(name)
            if found is None:
                self._put_aside(self._folder / name, "not a name of ours")
                continue
            task_id, attempt = uuid.UUID(found["task"]), int(found["attempt"]) + 1
            if task_id in self._paths:
                self._put_aside(self._folder / name, "the task is there twice")
                continue
            path = self._counted(self._folder / name, f"{found['task']}.{attempt}")
            try:
                entry = _decoded(path.read_bytes(), task_id, attempt)
            except (OSError, *_DAMAGED) as error:
                self._put_aside(path, f"{type(error).__name__}: {error}")
                continue
            self._paths[task_id] = path
            yield entry

    def _left(self) -> list[str]:
        """Names in the order of their writing; half-written ones are removed."""
        found: list[tuple[int, str]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    with contextlib.suppress(OSError):
                        Path(entry.path).unlink()
                elif entry.name != ASIDE:
                    with contextlib.suppress(OSError):
                        written = entry.stat(follow_symlinks=False).st_mtime_ns
                        found.append((written, entry.name))
        return [name for _, name in sorted(found)]

    def _counted(self, path: Path, name: str) -> Path:
        try:
            return path.rename(path.with_name(name))
        except OSError as error:  # a read-only file system, say; better than lost
            log.warning("the attempts of %s cannot be counted: %s", path, error)
            return path

    def _put_aside(self, path: Path, why: str) -> None:
        aside = self._folder / ASIDE
        log.error("%s cannot be resubmitted and is moved to %s: %s", path, aside, why)
        with contextlib.suppress(OSError):
            aside.mkdir(mode=0o700, exist_ok=True)
            path.rename(aside / path.name)


def _encoded(entry: Entry) -> bytes:
    """A line that says what follows, then the task as it came."""
    packed = entry.packed_task
    head = {
        "format": _FORMAT,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "function_id": None if entry.function_id is None else str(entry.function_id),
        "resource_specification": entry.resource_specification,
        "result_serializers": entry.result_serializers,
    }
    return json.dumps(head).encode() + b"\n" + packed


def _decoded(content: bytes, task_id: uuid.UUID, attempt: int) -> Entry:
    """The inverse.

    :raises ValueError: (or another of ``_DAMAGED``) it is damaged, or of another format
    """
    line, _, packed = content.partition(b"\n")
    head = json.loads(line)
    if head["format"] != _FORMAT:
        raise ValueError(f"format {head['format']!r} is of another version")
    if hashlib.sha256(packed).hexdigest() != head["sha256"]:
        raise ValueError("damaged")
    function = head["function_id"]
    resources = head["resource_specification"]
    if not isinstance(resources, dict):
        raise TypeError("no resource specification")
    return Entry(
        task_id,
        None if function is None else uuid.UUID(function),
        packed,
        resources,
        head["result_serializers"],
        attempt,
    )


def _write_privately(path: Path, new: Path, content: bytes) -> None:
    try:
        _write(new, content)
    except FileNotFoundError:  # the first one
        new.parent.mkdir(mode=0o700, exist_ok=True)
        _write(new, content)
    new.rename(path)


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
