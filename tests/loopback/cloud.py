"""A loopback STAND-IN for the Globus cloud: Compute's REST service, Globus Auth, AMQP.

The hosted service cannot be had in a test: it needs an account and a network. All else
in the end-to-end tests is real (the endpoint, its user endpoints, Parsl, RabbitMQ, the
SDK); only the service is replaced, by this module. It runs in the test process, listens
on 127.0.0.1 only, and checks no credentials.

It keeps to what the open source of endpoint and SDK shows of the protocol. Three things
cannot be seen there and are *assumed*:

- a user endpoint's id follows from the core endpoint, the user and the configuration
  (``state.user_endpoint_id``), so that the same configuration reaches the same process;
- every submission sends a start command for its user endpoint, ahead of its tasks;
- a start-up failure, reported as a heartbeat with ``error``, fails all tasks that are
  open on that user endpoint, and tasks it had not taken are dropped.

It does not imitate authorisation, rate and size limits, sharing, high assurance.
"""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from . import amqp
from .rest import Answer, ApiError, RestServer, Router
from .state import IDENTITY, Report, State, Task, UserEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

USERNAME = "tester@example.org"
MINIMUM_VERSION = "4.0.0"
START_FAILURE = "ENDPOINT_START_FAILURE"
_AUTH_SCOPES = ("openid", "email", "profile", "urn:globus:auth:")


class Cloud:
    """The stand-in service; use :func:`cloud` to start and stop one."""

    def __init__(self, amqp_url: str) -> None:
        self.state = State()
        self._broker = amqp.Broker(
            amqp_url, f"gc-{uuid.uuid4().hex[:8]}", self._on_result, self._on_heartbeat
        )
        self._server = RestServer(self._routes())

    @property
    def url(self) -> str:
        """Base URL of Compute and Auth alike; also what ``http_proxy`` points at."""
        return self._server.url

    def start(self) -> None:
        """Serve both sides."""
        self._broker.start()
        self._server.start()

    def stop(self) -> None:
        """Stop both sides; queues stay on the broker, which is the test's own."""
        self._server.stop()
        self._broker.stop()

    def _routes(self) -> Router:
        router = Router()
        for method, path, handler in (
            ("POST", "/v2/oauth2/token", _tokens),
            ("GET", "/v2/oauth2/userinfo", _userinfo),
            ("GET", "/v2/version", _versions),
            ("POST", "/v3/endpoints", self._register),
            ("PUT", "/v3/endpoints/{endpoint_id}", self._register),
            ("GET", "/v2/endpoints/{endpoint_id}/status", self._endpoint_status),
            ("GET", "/v2/endpoints/{endpoint_id}", self._endpoint),
            ("POST", "/v3/functions", self._register_function),
            ("POST", "/v3/endpoints/{endpoint_id}/submit", self._submit),
            ("GET", "/v2/get_amqp_result_connection_url", self._result_queue),
            ("GET", "/v2/tasks/{task_id}", self._task),
            ("POST", "/v2/batch_status", self._batch_status),
            ("GET", "/v2/taskgroup/{group_id}", self._group),
        ):
            router.add(method, path, handler)
        return router

    def _register(self, body: Answer, endpoint_id: str | None = None) -> Answer:
        core = self.state.register_core(body, endpoint_id)
        self._broker.declare_endpoint(core.id)
        return self._credentials(core.id)

    def _credentials(self, endpoint_id: str) -> Answer:
        broker = self._broker
        return {
            "endpoint_id": endpoint_id,
            "command_queue_info": broker.consume_info(
                amqp.command_queue(endpoint_id), "commands"
            ),
            "task_queue_info": broker.consume_info(
                amqp.task_queue(endpoint_id), "tasks"
            ),
            "result_queue_info": broker.publish_info(endpoint_id, "results"),
            "heartbeat_queue_info": broker.publish_info(endpoint_id, "heartbeats"),
        }

    def _register_function(self, body: Answer) -> Answer:
        if not body.get("serialized", True):
            raise ApiError(
                HTTPStatus.UNPROCESSABLE_ENTITY, "bare source code is not imitated"
            )
        return {"function_uuid": self.state.add_function(body["function_code"])}

    def _submit(self, body: Answer, endpoint_id: str) -> Answer:
        self._check_submission(body, endpoint_id)
        group_id = body.get("task_group_id") or str(uuid.uuid4())
        uep = self.state.user_endpoint(
            endpoint_id, body.get("user_endpoint_config") or {}
        )
        self._broker.declare_endpoint(uep.id)
        if body.get("create_queue"):
            self._broker.declare_group(group_id)
        tasks = {
            function_id: [
                (
                    self.state.add_task(
                        uep, function_id, group_id, bool(body["create_queue"])
                    ),
                    load,
                )
                for load in payloads
            ]
            for function_id, payloads in body["tasks"].items()
        }
        self._broker.send_command(endpoint_id, self._start_command(uep, body))
        for task, payload in (pair for pairs in tasks.values() for pair in pairs):
            self._send_task(task, payload, body)
        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": group_id,
            "endpoint_id": endpoint_id,
            "tasks": {
                fn: [task.id for task, _ in pairs] for fn, pairs in tasks.items()
            },
        }

    def _check_submission(self, body: Answer, endpoint_id: str) -> None:
        if endpoint_id not in self.state.cores:
            raise ApiError(HTTPStatus.NOT_FOUND, f"no endpoint {endpoint_id}")
        unknown = [fn for fn in body["tasks"] if fn not in self.state.functions]
        if unknown:
            raise ApiError(HTTPStatus.NOT_FOUND, f"no function {unknown}")

    def _start_command(self, uep: UserEndpoint, body: Answer) -> Answer:
        return {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {
                "name": uep.name,
                "user_opts": uep.config,
                "user_runtime": body.get("user_runtime") or {},
                "amqp_creds": self._credentials(uep.id),
            },
            "globus_username": USERNAME,
            "globus_effective_identity": IDENTITY,
            "globus_identity_set": [{"sub": IDENTITY}],
        }

    def _send_task(self, task: Task, payload: str, body: Answer) -> None:
        code = self.state.functions[task.function_id]
        headers = {
            "function_uuid": task.function_id,
            "task_uuid": task.id,
            "resource_specification": json.dumps(body.get("resource_specification")),
            "result_serializers": body.get("result_serializers") or [],
        }
        data = {"task_id": task.id, "task_buffer": code + payload}
        self._broker.send_task(task.endpoint_id, amqp.pack("task", data), headers)

    def _on_result(self, body: bytes) -> None:
        result = amqp.unpack(body)
        task = self.state.finish(result["task_id"], result)
        if task and task.wants_queue:
            self._broker.send_result(task.group_id, body)

    def _on_heartbeat(self, body: bytes) -> None:
        data = amqp.unpack(body)
        global_state = data.get("global_state") or data.get("ep_status_report") or {}
        report = Report(
            data["endpoint_id"],
            time.monotonic(),
            global_state,
            data.get("task_statuses") or {},
        )
        self.state.record(report)
        if "error" in global_state:
            self._fail_open_tasks(report.endpoint_id, str(global_state["error"]))

    def _fail_open_tasks(self, endpoint_id: str, message: str) -> None:
        open_tasks = self.state.open_tasks(endpoint_id)
        if endpoint_id in self.state.users:
            self._broker.drop_tasks(endpoint_id)
        for task in open_tasks:
            details = {"code": START_FAILURE, "user_message": message}
            data = {"task_id": task.id, "data": message, "error_details": details}
            self._on_result(amqp.pack("result", data))

    def _result_queue(self, _body: Answer) -> Answer:
        return {
            "queue_prefix": self._broker.group_prefix,
            "connection_url": self._broker.url,
        }

    def _endpoint(self, _body: Answer, endpoint_id: str) -> Answer:
        core = self.state.cores.get(endpoint_id)
        if core is None:
            raise ApiError(HTTPStatus.NOT_FOUND, f"no endpoint {endpoint_id}")
        return {"uuid": core.id, "name": core.name, **core.registration}

    def _endpoint_status(self, _body: Answer, endpoint_id: str) -> Answer:
        reports = self.state.reports_of(endpoint_id)
        online = bool(reports) and reports[-1].says_alive
        return {
            "status": "online" if online else "offline",
            "details": reports[-1].global_state if reports else {},
        }

    def _task(self, _body: Answer, task_id: str) -> Answer:
        task = self.state.tasks.get(task_id)
        if task is None:
            raise ApiError(HTTPStatus.NOT_FOUND, f"no task {task_id}")
        return _task_answer(task)

    def _batch_status(self, body: Answer) -> Answer:
        return {
            "results": {
                task_id: self._task({}, task_id) for task_id in body["task_ids"]
            }
        }

    def _group(self, _body: Answer, group_id: str) -> Answer:
        tasks = [
            {"id": t.id} for t in self.state.tasks.values() if t.group_id == group_id
        ]
        return {"taskgroup_id": group_id, "tasks": tasks}


def _task_answer(task: Task) -> Answer:
    """A task as the polling calls show it."""
    if task.result is None:
        return {"task_id": task.id, "status": "waiting-for-ep"}
    failed = bool(task.result.get("error_details"))
    return {
        "task_id": task.id,
        "status": "failed" if failed else "success",
        "completion_t": str(task.finished),
        "exception" if failed else "result": task.result["data"],
        "details": task.result.get("details") or {},
    }


def _versions(_body: Answer) -> Answer:
    return {"min_ep_version": MINIMUM_VERSION, "min_sdk_version": MINIMUM_VERSION}


def _userinfo(_body: Answer) -> Answer:
    identity = {"sub": IDENTITY, "username": USERNAME}
    return {**identity, "preferred_username": USERNAME, "identity_set": [identity]}


def _tokens(body: Answer) -> Answer:
    """One token for each resource server whose scopes were asked for, and no other."""
    by_server: dict[str, list[str]] = {}
    for scope in str(body.get("scope", "")).split():
        server = (
            "auth.globus.org" if scope.startswith(_AUTH_SCOPES) else "funcx_service"
        )
        by_server.setdefault(server, []).append(scope)
    shared = {"token_type": "Bearer", "expires_in": 172800, "access_token": "loopback"}
    tokens: list[Answer] = [
        {**shared, "resource_server": server, "scope": " ".join(scopes)}
        for server, scopes in by_server.items()
    ]
    if not tokens:
        raise ApiError(HTTPStatus.BAD_REQUEST, "no scope was asked for")
    return {**tokens[0], "other_tokens": tokens[1:]}


@contextmanager
def cloud(amqp_url: str) -> Iterator[Cloud]:
    """A running stand-in that uses the broker at ``amqp_url``."""
    service = Cloud(amqp_url)
    service.start()
    try:
        yield service
    finally:
        service.stop()
