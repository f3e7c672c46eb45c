"""What the engine tells a worker about a task, besides the task itself.

Made in the endpoint process, read in worker processes. It crosses Parsl as one text
(:meth:`Terms.to_wire`), so that the two sides agree on words rather than on a pickled
class. Parsl packs and unpacks what goes with a task five times between endpoint and
result, which takes several times as long for a table with identifiers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from globus_compute_apptainer.worker.order import ContainerOrder

FORMAT: Final = 5

RESULT_SIZE_LIMIT: Final = 10 * 1024 * 1024


@dataclass(frozen=True)
class Terms:
    """How a task is run. But for ``order``, these are arguments of the stock engine's
    ``execute_task``, with its defaults.

    :param order: the container that it runs in
    :param run_dir: absolute path of the folder for tasks
    :param endpoint_id: of the endpoint, for the result's details
    :param result_size_limit: bytes
    :param run_in_sandbox: every task has a folder of its own in ``run_dir``
    :param task_deserializers: import paths of the strategies that may read the task;
        all of them if there are none
    :param result_serializers: those that may write the result
    """

    order: ContainerOrder
    run_dir: str
    endpoint_id: str | None = None
    result_size_limit: int = RESULT_SIZE_LIMIT
    run_in_sandbox: bool = False
    task_deserializers: tuple[str, ...] = ()
    result_serializers: tuple[str, ...] = ()

    def to_wire(self) -> str:
        """As text, see :meth:`from_wire`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps({**fields, "order": self.order.fields(), "format": FORMAT})

    @classmethod
    def from_wire(cls, wire: str) -> Terms:
        """The terms that :meth:`to_wire` was called on.

        :raises ValueError: endpoint and worker run different versions of this package
        """
        fields: dict[str, Any] = json.loads(wire)
        if (found := fields.pop("format", None)) != FORMAT:
            raise ValueError(
                "endpoint and worker run different versions of globus-compute-apptainer"
                f" (terms of format {found!r}, expected {FORMAT})"
            )
        try:
            order = ContainerOrder.from_fields(fields.pop("order"))
            lists = ("task_deserializers", "result_serializers")
            fields.update((name, tuple(fields[name])) for name in lists)
            return cls(order=order, **fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"malformed terms of a task: {error}") from None
