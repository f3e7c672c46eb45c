"""Results that leave by upstream's result store."""

from __future__ import annotations

import stat
import threading
import uuid
from pathlib import Path

import pytest
from globus_compute_endpoint.endpoint.result_store import ResultStore

from globus_compute_apptainer.endpoint.outbox import CONFIRMED_SECONDS, FOLDER, Outbox


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / FOLDER)


def test_upstreams_store_finds_what_is_put(outbox: Outbox, tmp_path) -> None:
    task_id = uuid.uuid4()
    outbox.put(task_id, b"a result")
    assert list(ResultStore(tmp_path)) == [(str(task_id), b"a result")]
    assert outbox.unwritten() == 0
    (path,) = (tmp_path / FOLDER).iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reader_never_sees_half_a_result(outbox: Outbox, tmp_path) -> None:
    store, done = ResultStore(tmp_path), threading.Event()
    large = b"x" * 1_000_000
    torn: list[int] = []
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            for name, content in store:
                seen.add(name)
                if len(content) != len(large):
                    torn.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    task_ids = [uuid.uuid4() for _ in range(30)]
    for task_id in task_ids:
        outbox.put(task_id, large)
    while len(seen) < len(task_ids) and reader.is_alive():
        threading.Event().wait(0.01)
    done.set()
    reader.join()
    assert torn == []


def test_a_result_that_cannot_be_stored_waits_until_it_can(tmp_path, caplog) -> None:
    blocker = tmp_path / "endpoint"
    blocker.write_text("")
    outbox = Outbox(blocker / FOLDER)
    task_ids = [uuid.uuid4() for _ in range(3)]
    for task_id in task_ids:
        outbox.put(task_id, b"a result")
    outbox.retry()
    assert outbox.unwritten() == 3
    assert "its result is not stored" in caplog.text
    blocker.unlink()
    blocker.mkdir()
    outbox.retry()
    assert outbox.unwritten() == 0
    assert {name for name, _ in ResultStore(blocker)} == set(map(str, task_ids))


def test_a_result_is_on_its_way_until_the_broker_must_have_it(tmp_path) -> None:
    now = [100.0]
    outbox = Outbox(tmp_path / FOLDER, clock=lambda: now[0])
    assert outbox.unsent() == 0
    task_ids = [uuid.uuid4() for _ in range(3)]
    for task_id in task_ids:
        outbox.put(task_id, b"a result")
    now[0] += 1000
    assert outbox.unsent() == 3
    store = ResultStore(tmp_path)
    store.discard(str(task_ids[0]))
    assert outbox.unsent() == 3
    now[0] += CONFIRMED_SECONDS
    assert outbox.unsent() == 2
    store.clear()
    assert outbox.unsent() == 2
    now[0] += CONFIRMED_SECONDS
    assert outbox.unsent() == 0
