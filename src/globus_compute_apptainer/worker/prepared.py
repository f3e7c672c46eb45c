"""What a worker made of a task's terms, kept for the next task with the same.

Runs in worker processes. To make it for every task would cost more than to run a small
one.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
import platform
from typing import TYPE_CHECKING, Any, Final

import dill

from globus_compute_apptainer.worker.container import Facts
from globus_compute_apptainer.worker.environment import (
    WorkerEnvironment,
    task_environment,
)
from globus_compute_apptainer.worker.message import Form
from globus_compute_apptainer.worker.terms import Terms

if TYPE_CHECKING:
    pass

SMALLEST_LIMIT: Final = 128


class Prepared:
    """Terms, checked, and what depends on nothing but them.

    :raises ValueError: the stock engine would refuse them, in the same words
    """

    def __init__(self, terms: Terms) -> None:
        if allowed := terms.task_deserializers:
            from globus_compute_sdk.serialize import ComputeSerializer  # noqa: PLC0415

            ComputeSerializer(allowed_deserializer_types=allowed)
        if (limit := terms.result_size_limit) < SMALLEST_LIMIT:
            raise ValueError(
                "Invalid result limit; must be at least 128 bytes"
                f" (result_size_limit={limit})"
            )
        self.order = terms.order
        self.run_dir = _made(terms.run_dir)
        self.key = f"{terms.order.run_key} {self.run_dir}"
        self._terms = terms
        self._environment = WorkerEnvironment(dict(terms.order.env))
        self._lasting: dict[str, Any] = {"env": None}
        self._form: tuple[Facts, Form] | None = None

    def header(self, task_id: str) -> dict[str, Any]:
        """What the container is told with a task, whose own folder is made.

        What is ``lasting`` is the same object as before where it has not changed.
        """
        env = self._environment(os.environ)
        if self._lasting["env"] is not env:
            self._lasting = {
                "cwd": self.run_dir,
                "env": env,
                "limit": self._terms.result_size_limit,
                "allowed": self._terms.task_deserializers,
                "result_serializers": self._terms.result_serializers,
            }
        if not self._terms.run_in_sandbox:
            about = task_environment(task_id, None)
            return {"lasting": self._lasting, "task": about}
        folder = f"{self.run_dir}/{task_id}"
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103  # a third of the time
        about = task_environment(task_id, folder)
        return {"lasting": self._lasting, "task": about, "cwd": folder}

    def details(self, facts: Facts) -> dict[str, Any]:
        """What a result says about where it was made."""
        container = self.order.summary()
        if facts.not_preloaded:
            container["not_preloaded"] = dict(facts.not_preloaded)
        known = {**facts.details, "endpoint_id": self._terms.endpoint_id}
        return {**known, "container": container}

    def form(self, facts: Facts) -> Form:
        """The form for results with such details."""
        known = self._form
        if known is None or known[0] is not facts:
            self._form = known = facts, Form(self.details(facts))
        return known[1]

    @functools.cached_property
    def expected(self) -> Facts:
        """What a container would have said of itself, as far as that is known.

        Without versions the SDK would blame a difference of versions.
        """
        return Facts(
            {
                "os": platform.platform(),
                "dill_version": dill.__version__,
                "python_version": self.order.python_version
                or platform.python_version(),
                "globus_compute_sdk_version": importlib.metadata.version(
                    "globus-compute-sdk"
                ),
            }
        )


@functools.lru_cache(maxsize=64)
def prepared(wire: str) -> Prepared:
    """Of :meth:`.Terms.to_wire`.

    :raises ValueError: see :meth:`.Terms.from_wire` and :class:`Prepared`
    """
    return Prepared(Terms.from_wire(wire))


def _made(run_dir: str) -> str:
    """The folder for tasks in general. Made once, and for every new container: those
    that run would not see another one in its place."""
    folder = pathlib.Path(run_dir)
    if not folder.is_absolute():
        raise ValueError(f"Absolute path required.  Received: {run_dir=}")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
