"""Base images: each made once per digest, however many builds want it.

Runs in the endpoint process, in the threads of builds. A base is a SIF on a shelf, by
the digest of what it was made from, with the inventory of what is in it beside it::

    SHELF/sha256/ab/ab12…/base.sif  base.json  inventory-1.json

What a reference means is asked once per :data:`.remote.FRESH_SECONDS`; a known image
is used on when its registry is down.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import inventory, sif
from globus_compute_apptainer.build.bases import bootstrap, localfiles, remote
from globus_compute_apptainer.build.bases.sources import Asked, Found
from globus_compute_apptainer.build.bases.tags import Tags, written_time
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.pieces import Known, Piece, read_piece
from globus_compute_apptainer.spec.base import LOCAL_AGENTS

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper

SIF_FILE: Final = "base.sif"
LOCK_FILE: Final = "base.json"
INVENTORY_FILE: Final = "inventory-1.json"
"""The number changes with what an inventory holds."""


@dataclass(frozen=True)
class Base:
    """A base image that is here.

    :param digest: of what it was made from: a registry's manifest for this kind of
        machine, or a file's content
    :param reference: ``agent://…``, as asked for
    :param lock: how the reference was resolved, plain JSON: ``reference``,
        ``digest``, ``index_digest``, ``resolved_at``, ``kind``, ``layers``
    :param known: the file system in ``sif``, which was hashed when it was made
    """

    sif: Path
    digest: str
    reference: str
    inventory: Inventory
    lock: Mapping[str, Any]
    known: Known = ()


class Bases:
    """The base images of one cache. Threads and processes may share it.

    :param tags: directory for what references meant, and when
    """

    def __init__(
        self, shelf: Keeper, tags: Path, *, now: Callable[[], float] = time.time
    ) -> None:
        self._shelf, self._tags, self._now = shelf, Tags(tags), now

    def get(self, job: Job) -> Base:
        """The base of ``job.image``, resolved and pulled where it must be.

        Enters the stages ``resolve`` and, where something has to be made, ``pull``.

        :raises BuildError: it does not exist or cannot be had; with ``job.fresh``
            also if it is known but cannot be asked for again
        :raises StoreError: waiting for another build that makes it was ended
        """
        reference = f"{job.image.agent}://{job.image.base_image}"
        job.enter("resolve", reference)
        asked = Asked(
            job,
            self._tags,
            self._now,
            has=lambda digest: self._whole(digest) is not None,
            lock=lambda key: self._lock(job, key),
        )
        with _found(asked) as found:
            place = self._place(job, found)
        told = json.loads((place / LOCK_FILE).read_text(encoding="utf-8"))
        lock = {
            "reference": reference,
            "digest": found.digest,
            "index_digest": found.index_digest,
            "resolved_at": written_time(found.asked_at),
            "kind": found.kind,
            "layers": list(found.layers or told.get("layers", ())),
        }
        seen = self._inventory(job, place)
        known = _known(told.get("system"))
        return Base(place / SIF_FILE, found.digest, reference, seen, lock, known)

    def _lock(self, job: Job, key: str) -> AbstractContextManager[object]:
        left = max(1.0, job.left())
        return self._shelf.lock(key, cancel=job.cancel, timeout=left)

    def _whole(self, digest: str) -> Path | None:
        """The base's place, unless its file is missing or cut short."""
        if not digest.startswith("sha256:"):
            return None
        place = self._shelf.find(digest)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if place is not None:
                told = json.loads((place / LOCK_FILE).read_text(encoding="utf-8"))
                if (place / SIF_FILE).stat().st_size == told["size"]:
                    return place
        return None

    def _place(self, job: Job, found: Found) -> Path:
        place = self._whole(found.digest)
        if place is not None:
            return place
        with self._lock(job, found.digest):
            place = self._whole(found.digest)
            if place is not None:
                job.transcript.note("another build has made the base image meanwhile")
                return place
            self._shelf.remove(found.digest)  # where it is damaged
            with self._shelf.workspace() as workspace:
                self._make(job, found, workspace)
                return self._shelf.keep(found.digest, workspace)

    def _make(self, job: Job, found: Found, workspace: Path) -> None:
        job.enter("pull", found.what)
        target = workspace / SIF_FILE
        found.make(target)
        system = check(job, target)
        told: dict[str, Any] = {"digest": found.digest, "kind": found.kind}
        told |= {"made_from": found.what, "layers": list(found.layers)}
        told["size"] = target.stat().st_size
        told["system"] = _piece(job, target, system)
        _write(workspace / LOCK_FILE, told)
        seen = inventory.take(job, target)
        _write(workspace / INVENTORY_FILE, inventory.to_json(seen))

    def _inventory(self, job: Job, place: Path) -> Inventory:
        """The one beside the base; taken again where another version wrote it."""
        path = place / INVENTORY_FILE
        with contextlib.suppress(OSError, ValueError):
            return inventory.from_json(json.loads(path.read_text(encoding="utf-8")))
        seen = inventory.take(job, place / SIF_FILE)
        new = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            _write(new, inventory.to_json(seen))
            new.replace(path)
        return seen


@contextlib.contextmanager
def _found(asked: Asked) -> Iterator[Found]:
    agent = asked.job.image.agent
    if agent in LOCAL_AGENTS:
        yield localfiles.found(asked)
        return
    made = {"library": remote.library, "debootstrap": bootstrap.found}
    with made.get(agent, remote.found)(asked) as found:
        yield found


def check(job: Job, path: Path) -> sif.Part:
    """The file system of a SIF that layers can be laid on.

    :raises BuildError: it is no SIF, encrypted, or has another file system
        (``base-unsuitable``)
    """
    try:
        system = sif.system(sif.parts(path))
    except sif.SifError as error:
        raise job.error(
            f"the base image is {error}",
            code="base-not-found",
            hint="check the file: `apptainer sif list` must show it",
        ) from error
    if system.filesystem == sif.SQUASHFS:
        return system
    encrypted = system.filesystem == sif.ENCRYPTED
    raise job.error(
        "the base image is encrypted"
        if encrypted
        else "the base image holds another file system than squashfs",
        code="base-unsuitable",
        hint="images are made without any key: build the base without encryption"
        if encrypted
        else "build the base again with `apptainer build`",
    )


def _piece(job: Job, path: Path, part: sif.Part) -> dict[str, Any]:
    with path.open("rb") as file:
        piece = read_piece(file, part.offset, part.size, job.check)
    return {"offset": part.offset, "size": piece.size, "sha256": piece.sha256}


def _known(system: Any) -> Known:
    match system:
        case {"offset": int(offset), "size": int(size), "sha256": str(sha256)}:
            return ((offset, Piece(size, sha256)),)
    return ()  # an older version made it


def _write(path: Path, told: Mapping[str, Any]) -> None:
    text = json.dumps(told, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
