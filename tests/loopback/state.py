"""What the stand-in service remembers. Runs in the test process.

Plain records behind one condition variable: no input or output happens here, so that
the REST side and the AMQP side can share it, and tests can wait on it.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTITY = "9a5c1d62-3f0e-4d2b-8a51-6a1c0e3f7b11"
"""The one Globus identity there is: it owns endpoints and submits tasks."""


@dataclass(frozen=True)
class CoreEndpoint:
    """An endpoint as registered by ``globus-compute-endpoint start``."""

    id: str
    name: str
    registration: dict[str, Any]


@dataclass(frozen=True)
class UserEndpoint:
    """A child of a core endpoint: one per distinct user configuration."""

    id: str
    core_id: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name that the service gives it in a start command."""
        return f"uep.{self.core_id}.{self.id}"


@dataclass(frozen=True)
class Report:
    """One heartbeat of a core or user endpoint."""

    endpoint_id: str
    received: float
    global_state: dict[str, Any]
    task_statuses: dict[str, Any]

    @property
    def says_alive(self) -> bool:
        """False for the last report of a shutdown and for a start-up failure."""
        state = self.global_state
        return (
            state.get("active", True)
            and state.get("heartbeat_period", 1) > 0
            and "error" not in state
        )


@dataclass
class Task:
    """A submitted task; ``result`` is the decoded result message once there is one."""

    id: str
    endpoint_id: str
    function_id: str
    group_id: str
    wants_queue: bool
    result: dict[str, Any] | None = None
    finished: float = 0.0


def user_endpoint_id(core_id: str, config: dict[str, Any]) -> str:
    """The id of the user endpoint that serves ``config``: same input, same id."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return str(uuid.uuid5(uuid.UUID(core_id), f"{IDENTITY}\n{canonical}"))


@dataclass
class State:
    """Everything registered, submitted or reported; usable from any thread."""

    cores: dict[str, CoreEndpoint] = field(default_factory=dict)
    users: dict[str, UserEndpoint] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def register_core(
        self, registration: dict[str, Any], core_id: str | None
    ) -> CoreEndpoint:
        """Record a (re-)registration; a new endpoint gets a new id."""
        core = CoreEndpoint(
            core_id or str(uuid.uuid4()), registration["endpoint_name"], registration
        )
        with self.changed:
            self.cores[core.id] = core
        return core

    def user_endpoint(self, core_id: str, config: dict[str, Any]) -> UserEndpoint:
        """The user endpoint for ``config``, recorded on first sight."""
        with self.changed:
            uep = UserEndpoint(user_endpoint_id(core_id, config), core_id, config)
            return self.users.setdefault(uep.id, uep)

    def add_function(self, code: str) -> str:
        """Record a function's packed code; returns its id."""
        function_id = str(uuid.uuid4())
        with self.changed:
            self.functions[function_id] = code
        return function_id

    def add_task(
        self, uep: UserEndpoint, function_id: str, group_id: str, queue: bool
    ) -> Task:
        """Record a new open task."""
        task = Task(str(uuid.uuid4()), uep.id, function_id, group_id, queue)
        with self.changed:
            self.tasks[task.id] = task
        return task

    def finish(self, task_id: str, result: dict[str, Any]) -> Task | None:
        """Store a task's first result; None if it is unknown or already has one."""
        with self.changed:
            task = self.tasks.get(task_id)
            if task is None or task.result is not None:
                return None
            task.result, task.finished = result, time.time()
            self.changed.notify_all()
            return task

    def open_tasks(self, endpoint_id: str) -> list[Task]:
        """The tasks of a user endpoint that still wait for a result."""
        with self.changed:
            return [
                task
                for task in self.tasks.values()
                if task.endpoint_id == endpoint_id and task.result is None
            ]

    def record(self, report: Report) -> None:
        """Keep a status report and wake those who wait for one."""
        with self.changed:
            self.reports.append(report)
            self.changed.notify_all()

    def reports_of(self, endpoint_id: str) -> list[Report]:
        """All reports of one endpoint, oldest first."""
        with self.changed:
            return [
                report for report in self.reports if report.endpoint_id == endpoint_id
            ]

    def wait_until(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Wait for ``predicate()``; looks at every change and five times a second."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not predicate():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, 0.2))
        return True
