"""One image being put together: which layers, over what, and in which way.

Runs in the endpoint process, in the thread of the build. An image is *layered* (the
base's file with squashfs layers added to it) where that is right, and *flat* (one
file system, packed anew) where it is not: where the configuration says so, where
programs did to the base's files what layers cannot express, or where this host does
not show layers.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from globus_compute_apptainer.build import inventory
from globus_compute_apptainer.build.conda.conda import conda_layer
from globus_compute_apptainer.build.layer import Layer, lacks_bytecode, layer_key
from globus_compute_apptainer.build.layers import Below, known_pieces, sif_with
from globus_compute_apptainer.build.payload.payload import payload_layer
from globus_compute_apptainer.build.python.compiled import Compiled
from globus_compute_apptainer.build.python.environment import python_layer
from globus_compute_apptainer.build.sif import SifError
from globus_compute_apptainer.build.system.flat import build_flat
from globus_compute_apptainer.build.system.overlay import apt_layer, post_layer
from globus_compute_apptainer.build.system.surface import OverlayUnsuitableError
from globus_compute_apptainer.owners import owned_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from globus_compute_apptainer.build.bases.base import Base
    from globus_compute_apptainer.build.inventory import Inventory
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.order import Shelves
    from globus_compute_apptainer.build.payload.payload import Fetched
    from globus_compute_apptainer.build.record.lock import Lock
    from globus_compute_apptainer.build.wanted import Wanted
    from globus_compute_apptainer.pieces import Known


class Assembly:
    """The layers of one image, made in order.

    :param locked: install exactly this
    """

    def __init__(
        self, job: Job, shelves: Shelves, base: Base, locked: Lock | None
    ) -> None:
        self.job = job
        self._shelves, self._locked = shelves, locked
        self._below = Below(base.digest, base.sif, base.inventory, known=base.known)
        self._wanted: Wanted | None = None
        self._payload: Fetched | None = None
        self._made: list[Layer] = []
        flat = job.config.strategy == "flat"
        self.reason = "the configuration says so" if flat else ""

    @property
    def flat(self) -> bool:
        return bool(self.reason)

    @property
    def below(self) -> Below:
        """The base, and the layers that are laid over it."""
        return self._below

    @property
    def compiles(self) -> bool:
        """Whether its bytecode is to be a layer of its own. Flat images have it inside,
        as a layer of wheels has that were compiled before; not what lies over those."""
        told = ((layer.kind, layer.has_bytecode) for layer in self._made)
        return not self.flat and lacks_bytecode(told)

    @property
    def wheels(self) -> tuple[Compiled, Layer] | None:
        """How the bytecode can be had without the image, where all its Python is in
        one layer of wheels."""
        python = self._below.inventory.python
        found = [layer for layer in self._made if layer.kind != "apt"]
        if python is None or [layer.lock.get("way") for layer in found] != ["wheels"]:
            return None
        (layer,) = found
        packages, env = self._shelves.packages, str(layer.lock["environment"])
        compiled = Compiled.of(packages, env, python)
        return None if compiled is None else (compiled, layer)

    @property
    def made(self) -> tuple[Layer, ...]:
        """Every layer of the image, lowest first, laid over it or flattened in."""
        return tuple(self._made)

    @property
    def markers(self) -> tuple[str, ...]:
        """Files that prove, inside, that the layers are there."""
        return tuple(layer.marker for layer in self._made if layer.key)

    @property
    def python(self) -> str | None:
        """The minor version of Python that the image must have; None: any."""
        return self._wanted.python if self._wanted else None

    @property
    def start(self) -> str | None:
        """The program inside that every task's process is to be started through."""
        starts = [layer.lock.get("start") for layer in self._made]
        return next((str(start) for start in starts if start), None)

    def add(self, wanted: Wanted, payload: Fetched | None) -> None:
        """Make the layers of all that is wanted, except for post.

        :raises BuildError: one cannot be made
        """
        self._wanted, self._payload = wanted, payload
        self._check_python(last=not (wanted.apt or wanted.conda))
        if wanted.apt:
            self._add_apt(self._locked.apt if self._locked else wanted.apt)
        if wanted.conda:
            self._add_conda(wanted)
        if wanted.packages:
            self._add_python(wanted)
        if payload is not None:
            self.job.enter("payload", "pack the payload")
            self._lay(
                payload_layer(self.job, self._below, payload, self._shelves.layers)
            )

    def make_flat(self, reason: str) -> None:
        """From here on, the image is to be flat."""
        self.reason = reason
        self.job.transcript.note(f"building a flat image: {reason}")

    def add_post(self) -> None:
        """Make the layer of post, the last; a flat image runs it when it is written.

        :raises BuildError: it fails
        """
        wanted = self._wanted
        if self.flat or wanted is None or not (wanted.post or wanted.post_build):
            return
        self.job.enter("post")
        try:
            self._lay_post(wanted)
        except OverlayUnsuitableError as error:
            self.make_flat(str(error))

    def write(self, target: Path) -> None:
        """Write the image file.

        :raises BuildError: it cannot be written, or post fails
        """
        if self.flat:
            self._flatten(target, post=True)
            return
        self.job.enter("pack", "put base and layers together")
        sif_with(self.job, self._below.sif, self._below.layers, target)

    def known(self, target: Path) -> Known:
        """What of a written image file was hashed before it was put there."""
        with contextlib.suppress(SifError):
            return () if self.flat else known_pieces(self._below, target)
        return ()

    def _check_python(self, *, last: bool) -> None:
        """Say early what cannot become right any more.

        :param last: whether nothing that is yet to come brings a Python. Debian
            packages may bring one where there is none; conda's comes first on PATH
        """
        wanted = self.python
        found = self._below.inventory.python
        conda = self._wanted is not None and self._wanted.conda is not None
        if wanted is None or (not last and (found is None or conda)):
            return
        if found is None:
            raise self.job.error(
                f"the base image has no Python, {wanted} is asked for",
                code="no-python",
                stage="resolve",
            )
        if found.minor != wanted:
            raise self.job.error(
                f"the base image has Python {found.minor} ({found.executable}), "
                f"{wanted} is asked for",
                code="python-mismatch",
                stage="resolve",
            )

    def _add_apt(self, packages: Sequence[str]) -> None:
        self.job.enter("apt")
        if not self.flat:
            try:
                layers, cache = self._shelves.layers, self._shelves.packages
                self._lay(apt_layer(self.job, self._below, packages, layers, cache))
            except OverlayUnsuitableError as error:
                self.make_flat(str(error))
        if self.flat:
            self._rebase("apt", apt=packages)
        wanted = self._wanted
        if wanted and (wanted.packages or wanted.python):
            self._look()
            self._check_python(last=wanted.conda is None)

    def _add_conda(self, wanted: Wanted) -> None:
        if wanted.conda is None:
            return
        locked = self._locked.conda if self._locked else None
        self._lay(
            conda_layer(
                self.job,
                self._below,
                wanted.conda,
                self._shelves.layers,
                self._shelves.packages,
                python=wanted.python,
                locked=locked,
            )
        )
        if not wanted.packages:
            return
        if self.flat:
            self._rebase("conda")
        self._look()
        self._check_python(last=True)

    def _add_python(self, wanted: Wanted) -> None:
        layer = python_layer(
            self.job,
            self._below,
            wanted.pip,
            self._shelves.layers,
            self._shelves.packages,
            constraints=wanted.constraints,
            hashes=wanted.hashes,
            project=self._payload.root if wanted.projects and self._payload else None,
            projects=wanted.projects,
            locked=self._locked.pip if self._locked else None,
        )
        if layer is not None:
            self._lay(layer)

    def _lay_post(self, wanted: Wanted) -> None:
        self._lay(
            post_layer(
                self.job,
                self._below,
                wanted.post,
                self._shelves.layers,
                post_build=wanted.post_build,
            )
        )

    def _lay(self, layer: Layer) -> None:
        self._made.append(layer)
        self._below = replace(self._below, layers=(*self._below.layers, layer))

    def _rebase(self, kind: str, apt: Sequence[str] = ()) -> None:
        """Make one file of all that is there by now, and go on from that."""
        target = self.job.scratch / f"base-with-{kind}.sif"
        lock = self._flatten(target, apt=apt)
        key = layer_key(
            "flat",
            below=self._below.keys,
            apt=lock if apt else None,
            build_env=self.job.image.build_env if apt else None,
        )
        self._below = Below(key, target, self._below.inventory)

    def _flatten(
        self, target: Path, *, apt: Sequence[str] = (), post: bool = False
    ) -> Mapping[str, Any]:
        # Post may have been run already, for an image that showed no layers then.
        done = any(layer.kind == "post" for layer in self._made)
        wanted = self._wanted if post and not done else None
        lock = build_flat(
            self.job,
            self._below.sif,
            self._below.layers,
            target,
            apt=apt,
            post=wanted.post if wanted else (),
            post_build=bool(wanted and wanted.post_build),
        )
        if apt:
            self._made.append(Layer("apt", "", target, lock))
        if wanted and (wanted.post or wanted.post_build):
            told = {"post": list(wanted.post), "post_build": wanted.post_build}
            told |= {name: lock[name] for name in lock if name != "requested"}
            self._made.append(Layer("post", "", target, told))
        return lock

    def _look(self) -> None:
        """Take the inventory of all that is there by now; kept for next time."""
        key = layer_key("inventory", below=self._below.keys)
        path = self._shelves.tags / f"inventory-{key.removeprefix('sha256:')}.json"
        with contextlib.suppress(OSError, ValueError):
            seen = inventory.from_json(json.loads(path.read_text(encoding="utf-8")))
            self._below = replace(self._below, inventory=seen)
            return
        found = inventory.take(self.job, self._below.sif, self._below.overlays)
        self._below = replace(self._below, inventory=found)
        _write(path, found)


def _write(path: Path, found: Inventory) -> None:
    """Best effort: it is only for speed."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(owned_name(path.name))
        new.write_text(json.dumps(inventory.to_json(found)), encoding="utf-8")
        new.replace(path)
