"""What the engine tells a worker about the container that a task runs in.

Made in the endpoint process, read in worker processes; part of what goes with a task
(:mod:`.terms`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LISTS: Final = ("binds", "markers", "options", "pieces", "preload")


@dataclass(frozen=True)
class ContainerOrder:
    """A ready image and how to run it.

    :param image: path of the SIF on the machine that runs the task
    :param size: bytes that the file must have
    :param pieces: bytes of each piece that its digest is made of, see :mod:`..pieces`
    :param spec_digest: identity of what was asked for
    :param image_digest: identity of what was built
    :param base: reference of the base image, for people
    :param cache: where the image came from: ``hit``, ``built`` or ``shared``
    :param build_seconds: what building it took, whoever waited for it
    :param apptainer_version: of the Apptainer that built it
    :param markers: files inside that prove that the image's layers are there
    :param start: program inside that the container's process is started through
    :param bytecode: path of a further layer, of compiled Python
    :param python: absolute path of the Python inside; None if it has none
    :param python_version: such as ``3.11.2``
    :param gpu: ``nvidia`` or ``rocm``: run with the host's driver libraries
    :param binds: further binds, as Apptainer's ``--bind`` takes them
    :param env: the spec's variables for the running task
    :param options: further options of ``apptainer exec``, from the admin
    :param preload: modules that the container imports once, for all its tasks
    :param isolation: ``worker``: a process serves many tasks of one worker; ``task``:
        every task has a process of its own
    :param stage_to: folder of the node to copy the image to; ``$NAME`` in it is the
        worker's variable
    :param stage_size: bytes that such copies may take on a node
    :param warm_per_worker: how many containers a worker keeps, this one included
    :param warm_per_node: how many a node keeps, this one included
    :param warm_memory: bytes that they may take together; None: half of its memory
    :param idle_timeout: seconds without a task after which a container ends
    :param start_timeout: seconds that a container may take to start
    :param apptainer: path of the program on the worker's machine; None: search PATH
    """

    image: str
    size: int
    spec_digest: str
    image_digest: str
    base: str
    cache: str
    build_seconds: float
    apptainer_version: str
    python: str | None
    python_version: str | None
    pieces: tuple[int, ...] = ()
    markers: tuple[str, ...] = ()
    start: str | None = None
    bytecode: str | None = None
    gpu: str | None = None
    binds: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    isolation: str = "worker"
    stage_to: str | None = None
    stage_size: int = 0
    warm_per_worker: int = 4
    warm_per_node: int = 16
    warm_memory: int | None = None
    idle_timeout: float = 300.0
    start_timeout: float = 120.0
    apptainer: str | None = None

    @functools.cached_property
    def run_key(self) -> str:
        """Two orders with the same key may share a warm container."""
        identity = [
            *(self.image, self.bytecode, self.python, self.start, self.markers),
            *(self.gpu, self.binds, self.env, self.options, self.preload),
            self.apptainer,
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What the result says about the container, as ``details["container"]``."""
        return {
            "spec_digest": self.spec_digest,
            "image": self.image_digest,
            "base": self.base,
            "cache": self.cache,
            "build_seconds": self.build_seconds,
            "apptainer_version": self.apptainer_version,
        }

    def fields(self) -> dict[str, Any]:
        """All that it says, for JSON; see :meth:`from_fields`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ContainerOrder:
        """The order whose :meth:`fields` these were.

        :raises TypeError: they are another class's
        """
        lists = {name: tuple(fields.get(name, ())) for name in _LISTS}
        env = tuple((name, value) for name, value in fields.get("env", ()))
        return cls(**{**fields, **lists, "env": env})
