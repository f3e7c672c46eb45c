"""A real Globus Compute endpoint, and real SDK executors, on the loopback interface.

Runs in the test process, which starts the endpoint from any virtual environment that
has ``globus-compute-endpoint`` (4.16 or newer), as the current user, privileged or not.
The hosted service is replaced by :mod:`loopback.cloud`; RabbitMQ is the caller's.

    with testbed(tmp_path, rabbitmq=broker, venv_bin=Path(sys.prefix, "bin")) as bed:
        with bed.executor() as executor:
            assert executor.submit(double, 4).result(60) == 8

On leaving, the endpoint is stopped as its admin would (SIGTERM) and must then be gone
with all it started, else ``LeftBehind`` is raised, after killing what was left.
"""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from globus_compute_sdk import Client, Executor
from globus_compute_sdk.sdk import executor as sdk_executor
from globus_compute_sdk.serialize import PureSourceTextInspect
from globus_sdk import AccessTokenAuthorizer

from . import settings
from .cloud import Cloud, cloud
from .endpoint import BedError, Installation
from .state import user_endpoint_id

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture
    from globus_compute_sdk.serialize import SerializationStrategy

    from .state import Report

STOCK_TEMPLATE = Path(__file__).with_name("stock_template")
MARK = "GC_LOOPBACK_BED"
READY_SECONDS = 90


class Broker(Protocol):
    """What the test bed needs to know of a RabbitMQ server."""

    @property
    def amqp_url(self) -> str:
        """URL with user, password and virtual host."""
        ...


@dataclass
class Bed:
    """A running endpoint; made by :func:`testbed`."""

    cloud: Cloud
    endpoint_id: str
    installation: Installation
    core: subprocess.Popen[bytes]
    task_group: str = field(default_factory=lambda: str(uuid.uuid4()))
    _executors: list[Executor] = field(default_factory=list)

    def executor(
        self, *, code_strategy: SerializationStrategy | None = None, **kwargs: Any
    ) -> Executor:
        """A real SDK executor on this endpoint; ``kwargs`` are the SDK's own.

        Functions travel as source by default: one defined in a test module would
        otherwise be pickled by reference to a module that workers do not have.
        """
        defaults: dict[str, Any] = {
            "endpoint_id": self.endpoint_id,
            "client": self.client(code_strategy or PureSourceTextInspect()),
            "task_group_id": self.task_group,
            # the SDK's politeness to the hosted service would only slow tests down
            "api_burst_limit": 8,
            "api_burst_window_s": 1,
        }
        executor = Executor(**{**defaults, **kwargs})
        self._executors.append(executor)
        return executor

    def client(self, code_strategy: SerializationStrategy | None = None) -> Client:
        """A real SDK client that talks to the stand-in."""
        client = Client(
            environment="local",
            authorizer=AccessTokenAuthorizer("loopback"),
            code_serialization_strategy=code_strategy,
            do_version_check=False,
        )
        web = client._compute_web_client
        web.v2.base_url = web.v3.base_url = self.cloud.url + "/"
        return client

    def result_message(self, future: ComputeFuture) -> dict[str, Any]:
        """The endpoint's own result message of a finished task, before the SDK's view.

        It has ``data``, ``details`` and, of a failure, ``error_details``.
        """
        result = self.cloud.state.tasks[future.task_id].result
        if result is None:
            raise LookupError(f"task {future.task_id} has no result yet")
        return result

    def reports(self, endpoint_id: str | None = None) -> list[Report]:
        """Status reports, oldest first: of one endpoint, or of all user endpoints."""
        state = self.cloud.state
        if endpoint_id:
            return state.reports_of(endpoint_id)
        return [
            report
            for report in list(state.reports)
            if report.endpoint_id in state.users
        ]

    def wait_for_report(
        self, predicate: Callable[[Report], bool], timeout: float = 60
    ) -> Report:
        """The first user endpoint's report from now on that ``predicate`` accepts."""
        seen = len(self.reports())

        def matching() -> list[Report]:
            return [report for report in self.reports()[seen:] if predicate(report)]

        if not self.cloud.state.wait_until(lambda: bool(matching()), timeout):
            raise TimeoutError(f"no such status report within {timeout} s")
        return matching()[0]

    def processes(self) -> dict[int, str]:
        """All living processes of this bed, with their command lines."""
        return self.installation.processes()

    def uep_pids(self) -> dict[str, int]:
        """The living user endpoints: their ids and process ids."""
        alive = self.processes()
        latest = {
            report.endpoint_id: report.global_state["posix_pid"]
            for report in self.reports()
            if "posix_pid" in report.global_state
        }
        return {uep: pid for uep, pid in latest.items() if pid in alive}

    def uep_pid(self, config: Mapping[str, Any] | None = None) -> int | None:
        """The process of the user endpoint that serves ``config``, if it lives."""
        uep = user_endpoint_id(self.endpoint_id, dict(config or {}))
        return self.uep_pids().get(uep)

    def logs(self) -> list[Path]:
        """Logs of the core endpoint and of every user endpoint."""
        return self.installation.logs()

    def log_tails(self) -> str:
        """The ends of all logs, for the report of a failed test."""
        return self.installation.log_tails()

    def close_executors(self) -> None:
        """End the SDK's threads; futures that are still open are cancelled."""
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)
        watcher = sdk_executor._RESULT_WATCHERS.get(uuid.UUID(self.task_group))
        if watcher is not None:
            watcher.shutdown(wait=True, cancel_futures=True)
        # the SDK would offer this group to executors of the next bed
        Executor._default_task_group_id = None


@contextmanager
def testbed(
    workdir: Path,
    *,
    rabbitmq: Broker,
    venv_bin: Path,
    template_dir: Path = STOCK_TEMPLATE,
    template_vars: Mapping[str, Any] | None = None,
    template_edits: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    heartbeat_period: float = 5,
    debug: bool = False,
) -> Iterator[Bed]:
    """Configure and start an endpoint in ``workdir``; yields it once it is heard of.

    ``template_vars`` are set at the top of the copied template, and ``template_edits``
    replace pieces of its text; ``environment`` is added to the environment of the core
    endpoint and of its user endpoints.
    """
    user_dir = workdir.resolve() / "globus"
    mark = uuid.uuid4().hex
    # without SPT_NOENV, process titles overwrite the memory that holds the mark
    extra = {**(environment or {}), MARK: mark, "SPT_NOENV": "1"}
    with ExitStack() as stack:
        stack.enter_context(_loopback_unproxied())
        service = stack.enter_context(cloud(rabbitmq.amqp_url))
        env = settings.daemon_environment(service.url, venv_bin, user_dir, extra)
        endpoint = Installation(venv_bin, user_dir, f"{MARK}={mark}", env)
        endpoint.configure(
            settings.edited_template(
                template_dir, template_vars or {}, template_edits or {}
            ),
            template_dir / settings.SCHEMA,
            settings.user_environment(template_dir, venv_bin, user_dir, extra),
            settings.core_config(heartbeat_period, debug=debug),
        )
        core = endpoint.start()
        stack.callback(endpoint.stop, core)
        bed = Bed(service, _await_ready(service, endpoint, core), endpoint, core)
        stack.callback(bed.close_executors)
        yield bed


def _await_ready(
    service: Cloud, endpoint: Installation, core: subprocess.Popen[bytes]
) -> str:
    """Wait for the core endpoint's first heartbeat; returns its id."""
    state = service.state
    settled = state.wait_until(
        lambda: bool(state.reports) or core.poll() is not None, READY_SECONDS
    )
    if state.reports and core.poll() is None:
        return state.reports[0].endpoint_id
    why = (
        f"ended with {core.returncode}" if settled else f"silent for {READY_SECONDS} s"
    )
    raise BedError(f"the core endpoint is not up: {why}\n{endpoint.log_tails()}")


@contextmanager
def _loopback_unproxied() -> Iterator[None]:
    """Keep this process's own requests to loopback away from a site's HTTP proxy."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    for name, value in before.items():
        os.environ[name] = f"{value},127.0.0.1" if value else "127.0.0.1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
