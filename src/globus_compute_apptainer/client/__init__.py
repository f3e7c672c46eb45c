"""What clients may import; nothing here is needed to attach a spec by hand.

Runs where the SDK runs, and needs nothing but the SDK. Every ``from_…`` returns a
container spec, a plain dictionary::

    Executor(endpoint_id, resource_specification={"container": from_script("work.py")})
    Executor(endpoint_id, resource_specification=container(
        **from_environment(), gpu="nvidia"))
"""

from __future__ import annotations

from typing import Any

from globus_compute_apptainer.client.environment import from_environment
from globus_compute_apptainer.client.locks import from_lock
from globus_compute_apptainer.client.project import from_pyproject
from globus_compute_apptainer.client.requirements import from_requirements
from globus_compute_apptainer.client.script import from_script
from globus_compute_apptainer.spec import model

__all__ = [
    "container",
    "from_environment",
    "from_lock",
    "from_pyproject",
    "from_requirements",
    "from_script",
]


def container(**fields: Any) -> dict[str, Any]:
    """A ``resource_specification`` for tasks that are to run in a container::

        Executor(endpoint_id, resource_specification=container(pip=["pandas"]))

    :param fields: the spec's fields, as in ``docs/reference/spec.md``
    :raises SpecError: for what no endpoint of this version would accept; what an
        endpoint's policy allows is known to that endpoint only
    """
    model.parse(fields)
    return {"container": fields}
