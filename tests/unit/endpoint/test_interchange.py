"""Upstream's interchange with our engine: its real main loop, without a broker.

With a real broker and endpoint: ``tests/e2e/test_restart.py``.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.endpoint import interchange as upstreams
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_endpoint.engines import GCFuture

from globus_compute_apptainer.endpoint import interchange, outbox
from globus_compute_apptainer.endpoint.engine import ApptainerEngine

SPEC = {"base_image": "python:3.11-slim", "pip": ["pandas"]}
SECONDS = 60
LOOP = "main-loop"


class Publisher:
    """In place of a connection to the broker."""

    sent: list[bytes]

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def publish(self, message: bytes) -> Future[None]:
        type(self).sent.append(message)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def ack(self, tag: int) -> None:
        pass


@pytest.fixture
def make_interchange(
    tmp_path: Path, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """An interchange whose heart beats fast; not started."""
    monkeypatch.setattr(upstreams, "ResultPublisher", Publisher)
    monkeypatch.setattr(upstreams, "TaskQueueSubscriber", Publisher)
    monkeypatch.setattr(Publisher, "sent", [], raising=False)
    monkeypatch.setattr(upstreams.setproctitle, "setproctitle", lambda _: None)
    made: list[Any] = []

    def make(engine: Any, soft: int = 2, hard: int = 4) -> Any:
        config = UserEndpointConfig(
            engine=engine, idle_heartbeats_soft=soft, idle_heartbeats_hard=hard
        )
        names = "task", "result", "heartbeat"
        queues: dict[str, Any] = {f"{name}_queue_info": {} for name in names}
        new = "cred_fn" in inspect.signature(upstreams.EndpointInterchange).parameters
        credentials = {"cred_fn": lambda: {"amqp_creds": queues}}
        ic = upstreams.EndpointInterchange(
            config=config,
            **(credentials if new else {"reg_info": queues}),
            ep_info={},
            endpoint_id=uuid.uuid4(),
            endpoint_dir=tmp_path,
            logdir=str(tmp_path),
        )
        ic.heartbeat_period = 0.05  # the configuration has a minimum of 5 s
        made.append(ic)
        return ic

    yield make
    for ic in made:
        type(ic).stop(ic)
    for thread in threading.enumerate():
        if thread.name == LOOP:
            thread.join(SECONDS)


def deliver(ic: Any, spec: object) -> None:
    headers = {"function_uuid": str(uuid.uuid4()), "task_uuid": str(uuid.uuid4())}
    headers["resource_specification"] = json.dumps({"container": spec})
    ic.pending_task_queue.put((1, headers, b"task"))


def running(ic: Any) -> threading.Thread:
    thread = threading.Thread(target=ic._main_loop, name=LOOP, daemon=True)
    thread.start()
    return thread


def refusals(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("the endpoint is not idle and goes on")


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.fixture
def unstarted(executor: Any, tmp_path: Path) -> Iterator[ApptainerEngine]:
    block = {"cache_dir": str(tmp_path / "cache")}
    engine = ApptainerEngine(executor=executor, strategy="none", containers=block)
    yield engine
    engine.shutdown()


def test_an_engine_finds_the_interchange_that_starts_it(
    make_interchange, unstarted, monkeypatch
) -> None:
    found: list[object] = []
    monkeypatch.setattr(
        interchange, "keep_while_busy", lambda ic, busy: found.append(ic)
    )
    ic = make_interchange(unstarted)
    ic.start_engine()
    assert found == [ic]


def test_it_finds_none_where_there_is_none(unstarted, monkeypatch, tmp_path) -> None:
    assert interchange.starting() is None
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, upstreams.__name__)
        assert interchange.starting() is None
    unstarted.start(endpoint_id=uuid.uuid4(), run_dir=str(tmp_path))


def test_functions_are_the_interchanges_to_allow(make_interchange, unstarted) -> None:
    ic = make_interchange(unstarted)
    permitted, other = uuid.uuid4(), uuid.uuid4()
    assert interchange.allows(ic, other)
    ic.config.allowed_functions = [str(permitted)]
    assert interchange.allows(ic, permitted)
    assert not interchange.allows(ic, other)
    assert interchange.allows(ic, None)
    assert interchange.allows(None, other)


def test_the_soft_idle_limit_waits_for_resubmitted_tasks(
    make_interchange, make_engine, builder, caplog
) -> None:
    caplog.set_level("INFO")
    builder.gate.clear()
    engine = make_engine()
    ic = make_interchange(engine)
    interchange.keep_while_busy(ic, engine._busy)
    # A task of which the interchange does not know waits for its image.
    waits = GCFuture(uuid.uuid4())
    engine.submit(waits, b"task", {"container": SPEC})
    deliver(ic, None)  # done at once: all that is known of is done
    loop = running(ic)
    eventually(lambda: refusals(caplog) >= 3)
    assert loop.is_alive()
    builder.gate.set()
    assert waits.result(SECONDS) == b"the result"
    loop.join(SECONDS)
    assert not loop.is_alive()
    assert ic.time_to_quit


def test_the_hard_idle_limit_waits_for_builds(
    make_interchange, make_engine, builder, caplog
) -> None:
    caplog.set_level("INFO")
    builder.gate.clear()
    engine = make_engine()
    ic = make_interchange(engine)
    interchange.keep_while_busy(ic, engine._busy)
    deliver(ic, SPEC)
    loop = running(ic)
    eventually(lambda: refusals(caplog) >= 3)
    assert loop.is_alive()
    assert "1 images are being made" in caplog.text
    builder.gate.set()
    loop.join(SECONDS)
    assert not loop.is_alive()
    assert any(b"the result" in message for message in Publisher.sent)


def test_an_idle_endpoint_sends_stored_results_before_it_stops(
    make_interchange, make_engine, monkeypatch
) -> None:
    """The interchange looks for them only every second, some twenty heartbeats here."""
    monkeypatch.setattr(outbox, "CONFIRMED_SECONDS", 0.2)
    engine = make_engine()
    ic = make_interchange(engine, soft=1)
    interchange.keep_while_busy(ic, engine._busy)
    deliver(ic, None)
    engine._waiting._outbox.put(uuid.uuid4(), b"of a resubmitted task")
    loop = running(ic)
    loop.join(SECONDS)
    assert not loop.is_alive()
    assert b"of a resubmitted task" in Publisher.sent


def test_without_us_the_hard_limit_would_not_wait(
    make_interchange, make_engine, builder
) -> None:
    """What the two tests above rest on."""
    builder.gate.clear()
    ic = make_interchange(make_engine())
    deliver(ic, SPEC)
    loop = running(ic)
    loop.join(SECONDS)
    assert not loop.is_alive()


def test_any_other_reason_to_stop_counts_as_ever(
    make_interchange, make_engine, builder
) -> None:
    builder.gate.clear()
    engine = make_engine()
    ic = make_interchange(engine, soft=0)
    interchange.keep_while_busy(ic, engine._busy)
    deliver(ic, SPEC)
    loop = running(ic)
    eventually(lambda: engine._busy())
    ic.handle_sigterm(15, None)
    loop.join(SECONDS)
    assert not loop.is_alive()
    assert ic.time_to_quit
