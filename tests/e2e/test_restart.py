"""A user endpoint is killed while tasks wait for their image: the next answers them.

The core endpoint lives on; the next submission makes it start the user endpoint again.
What a SIGKILL leaves behind of the old one (Parsl's interchange, its workers) is ended
here, by process id, as an admin or a batch system would.
"""

from __future__ import annotations

import io
import os
import re
import signal
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from globus_compute_sdk.errors import TaskExecutionFailed

from loopback import processes
from loopback.testbed import testbed as make_bed
from provision.web import served

from .conftest import WORKSTATION

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

    from loopback.testbed import Bed

pytestmark = pytest.mark.apptainer

LONG = 300


def answer(number):
    import only_here

    return only_here.answer + number


def pid():
    import os

    return os.getpid()


@dataclass(frozen=True)
class Waiting:
    """A bed, and an image that cannot be finished before ``released`` is set."""

    bed: Bed
    spec: dict[str, Any]
    released: threading.Event

    def submit(self, count: int) -> list[ComputeFuture]:
        """Submit tasks, and wait until all of them wait for their image."""
        executor = self.bed.executor(resource_specification={"container": self.spec})
        futures = [executor.submit(answer, number) for number in range(count)]
        self.bed.wait_for_report(
            lambda report: (
                report.global_state.get("containers", {}).get("waiting_tasks") == count
            ),
            LONG,
        )
        return futures

    def kill(self) -> Path:
        """SIGKILL the user endpoint, and end what it leaves; its directory."""
        uep = self.bed.uep_pid()
        assert uep is not None
        (record,) = self.bed.installation.user_dir.glob("*/daemon.owner")
        os.kill(uep, signal.SIGKILL)
        self.until(lambda: self.said(rf"terminated by signal: 9 \({uep}\)"))
        processes.kill(self.left())
        assert processes.wait_gone(self.left, LONG) == {}
        return record.parent

    def left(self) -> dict[int, str]:
        alive = self.bed.processes()
        return {pid: line for pid, line in alive.items() if pid != self.bed.core.pid}

    def said(self, pattern: str) -> bool:
        return any(re.search(pattern, log.read_text()) for log in self.bed.logs())

    def until(self, true: Callable[[], bool]) -> None:
        assert self.bed.cloud.state.wait_until(true, LONG)


@contextmanager
def waiting_bed(
    tmp_path: Path, broker: Any, venv_bin: Path, registry: str, **edits: str
) -> Iterator[Waiting]:
    """:param edits: lines of the template: ``heartbeats``, ``containers``"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("only_here.py")
        entry.size = len(text := b"answer = 42\n")
        archive.addfile(entry, io.BytesIO(text))
    template_edits = {
        "cache_dir: ~/.cache/globus-compute-apptainer": (
            f"cache_dir: {tmp_path / 'images'}{edits.get('containers', '')}"
        ),
        "    build:": f"    build:\n      http_registries: ['{registry}']",
        "    policy:": "    policy:\n      payload_urls: ['http://127.0.0.1:*']",
        "idle_heartbeats_soft: 10": edits["heartbeats"],
    }
    with served(tmp_path) as web:
        url, released = web.held_back("/it.tar", buffer.getvalue())
        spec = {"base_image": f"{registry}/python:3.11-slim", "payload_url": url}
        try:
            with make_bed(
                tmp_path / "bed",
                rabbitmq=broker,
                venv_bin=venv_bin,
                template_dir=WORKSTATION,
                template_edits=template_edits,
            ) as bed:
                yield Waiting(bed, spec, released)
        finally:
            released.set()


def test_tasks_that_wait_survive_and_an_idle_endpoint_waits_for_them(
    tmp_path: Path, broker, venv_bin: Path, image_registry: str
):
    with waiting_bed(
        tmp_path,
        broker,
        venv_bin,
        image_registry,
        heartbeats="heartbeat_period: 5\nidle_heartbeats_soft: 1",
    ) as waiting:
        futures = waiting.submit(50)
        directory = waiting.kill()
        assert len(list((directory / "waiting_tasks").iterdir())) == 50
        with waiting.bed.executor() as executor:
            # Starts the endpoint, and when it is done nothing that the endpoint was
            # given by the service is left to do: after a heartbeat it would stop.
            executor.submit(pid).result(LONG)
        waiting.until(lambda: waiting.said("is not idle and goes on: .* 50 tasks wait"))
        assert not any(future.done() for future in futures)
        waiting.released.set()
        values = [future.result(LONG) for future in futures]
        assert values == [42 + number for number in range(50)]
        waiting.until(lambda: not list((directory / "waiting_tasks").iterdir()))
        assert waiting.said("50 tasks waited when this endpoint ended; resubmitted")
        assert waiting.said("of this endpoint is dead and left .*daemon.pid")
        waiting.until(lambda: waiting.left() == {})  # now it is idle


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_tasks_that_wait_survive(
    tmp_path: Path, broker, venv_bin: Path, image_registry: str
):
    with waiting_bed(
        tmp_path,
        broker,
        venv_bin,
        image_registry,
        heartbeats="heartbeat_period: 5\nidle_heartbeats_soft: 10",
    ) as waiting:
        futures = waiting.submit(999)
        waiting.kill()
        executor = waiting.bed.executor(
            resource_specification={"container": waiting.spec}
        )
        futures.append(executor.submit(answer, 999))
        waiting.bed.wait_for_report(
            lambda report: report.global_state["containers"]["waiting_tasks"] == 1000,
            LONG,
        )
        waiting.released.set()
        values = [future.result(LONG) for future in futures]
        assert values == [42 + number for number in range(1000)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("seconds", "removes"), [(5, True), (5, False), (100, True), (100, False)]
)
def test_a_submission_so_long_after_the_kill(
    tmp_path: Path, broker, venv_bin: Path, image_registry: str, seconds, removes
):
    """At upstream's default heartbeat, a pid file counts for 90 s. The service, as our
    stand-in plays it, then gives up all tasks that are open on the endpoint."""
    with waiting_bed(
        tmp_path,
        broker,
        venv_bin,
        image_registry,
        heartbeats="heartbeat_period: 30\nidle_heartbeats_soft: 10",
        containers=f"\n    remove_dead_pid_file: {str(removes).lower()}",
    ) as waiting:
        futures = waiting.submit(10)
        directory = waiting.kill()
        killed = time.monotonic()
        waiting.until(lambda: time.monotonic() - killed > seconds)
        waiting.released.set()
        with waiting.bed.executor() as executor:
            trigger = executor.submit(pid)
            refused = seconds == 5 and not removes
            if refused:
                assert "Another instance" in str(trigger.exception(LONG))
                for future in futures:
                    assert isinstance(future.exception(LONG), TaskExecutionFailed)
                assert len(list((directory / "waiting_tasks").iterdir())) == 10
            else:
                assert trigger.result(LONG)
                values = [future.result(LONG) for future in futures]
                assert values == [42 + number for number in range(10)]
