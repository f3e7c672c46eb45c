"""Tasks on disk: whole or not at all, private, in order, and counted."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from globus_compute_apptainer.endpoint.journal import ASIDE, Entry, Journal


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "task_id": uuid.uuid4(),
        "function_id": uuid.uuid4(),
        "packed_task": b"\x01{}\n\n\x00a task",
        "resource_specification": {"container": {"pip": ["é"]}, "priority": 2},
        "result_serializers": ["a.b"],
    }
    return Entry(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "waiting_tasks"


@pytest.fixture
def journal(folder: Path) -> Journal:
    return Journal(folder)


def left(folder: Path) -> list[Entry]:
    return list(Journal(folder).recover())


def test_nothing_is_there_before_something_waits(journal: Journal, folder) -> None:
    assert list(journal.recover()) == []
    assert not folder.exists()


@pytest.mark.parametrize(
    "changes",
    [{}, {"function_id": None}, {"result_serializers": None}, {"packed_task": b""}],
    ids=["all", "no function", "no serializers", "empty"],
)
def test_a_task_comes_back_as_it_was_and_counted(journal, folder, changes) -> None:
    kept = entry(**changes)
    journal.keep(kept)
    (found,) = left(folder)
    assert found == Entry(**{**vars(kept), "attempt": 1})


def test_each_process_that_takes_a_task_counts(journal, folder) -> None:
    journal.keep(entry())
    assert [left(folder)[0].attempt for _ in range(4)] == [1, 2, 3, 4]


def test_tasks_come_back_in_the_order_of_their_arrival(journal, folder) -> None:
    kept = [entry(packed_task=b"%d" % n) for n in range(20)]
    for number, one in enumerate(kept):
        journal.keep(one)
        (path,) = folder.glob(f"{one.task_id}.*")
        os.utime(path, ns=(0, number))  # a clock may be coarser than this is fast
    assert [e.packed_task for e in left(folder)] == [b"%d" % n for n in range(20)]
    assert [e.packed_task for e in left(folder)] == [b"%d" % n for n in range(20)]


def test_what_is_forgotten_does_not_come_back(journal, folder) -> None:
    kept = [entry() for _ in range(3)]
    for one in kept:
        journal.keep(one)
    journal.forget(kept[1].task_id)
    journal.forget(kept[1].task_id)
    journal.forget(uuid.uuid4())
    assert {e.task_id for e in left(folder)} == {kept[0].task_id, kept[2].task_id}


def test_a_recovered_task_can_be_forgotten(journal, folder) -> None:
    journal.keep(entry())
    later = Journal(folder)
    for found in later.recover():
        later.keep(found)  # it waits again: no second file
        assert len(list(folder.iterdir())) == 1
        later.forget(found.task_id)
    assert left(folder) == []


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o002])
def test_only_this_user_can_read_it(journal, folder, umask: int) -> None:
    before = os.umask(umask)
    try:
        journal.keep(entry())
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def damages(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "no line": b"\x00" * 100,
        "not JSON": b"{" + content,
        "truncated": content[:-1],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "another format": content.replace(b'"format": 1', b'"format": 2'),
        "no resources": content.replace(b'{"container"', b'[{"container"').replace(
            b'"priority": 2}', b'"priority": 2}]'
        ),
        "a list": b"[]\n",
        "a bad id": content.replace(b'"function_id": "', b'"function_id": "x'),
    }


@pytest.mark.parametrize("kind", list(damages(b"xx")))
def test_what_cannot_be_read_is_put_aside_and_the_rest_comes_back(
    journal, folder, caplog, kind
) -> None:
    good, bad = entry(), entry()
    journal.keep(good)
    journal.keep(bad)
    path = folder / f"{bad.task_id}.0"
    content = damages(path.read_bytes())[kind]
    assert content != path.read_bytes()
    path.write_bytes(content)
    assert [e.task_id for e in left(folder)] == [good.task_id]
    (aside,) = (folder / ASIDE).iterdir()
    assert aside.read_bytes() == content
    assert "cannot be resubmitted" in caplog.text
    assert str(bad.task_id) in caplog.text
    assert [e.task_id for e in left(folder)] == [good.task_id]


def test_strange_files_are_put_aside(journal, folder) -> None:
    journal.keep(entry())
    (folder / "README").write_text("")
    (folder / "a-directory").mkdir()
    assert len(left(folder)) == 1
    assert {p.name for p in (folder / ASIDE).iterdir()} == {"README", "a-directory"}


def test_half_written_files_are_removed(journal, folder) -> None:
    journal.keep(entry())
    (folder / f".{uuid.uuid4()}").write_bytes(b"half")
    assert len(left(folder)) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_task_that_cannot_be_written_down_is_said_once(tmp_path, caplog) -> None:
    (tmp_path / "a-file").write_text("")
    journal = Journal(tmp_path / "a-file" / "waiting_tasks")
    for _ in range(5):
        journal.keep(entry())
    assert caplog.text.count("cannot be written down") == 1
    journal.forget(uuid.uuid4())
    assert list(journal.recover()) == []


def test_resources_that_are_not_json_are_no_reason_to_fail(journal, folder) -> None:
    journal.keep(entry(resource_specification={"container": {1, 2}}))
    assert left(folder) == []


WRITER = """
import sys, uuid
from pathlib import Path
from globus_compute_apptainer.endpoint.journal import Entry, Journal
journal = Journal(Path(sys.argv[1]))
print("writes", flush=True)
while True:
    task_id = uuid.uuid4()
    journal.keep(Entry(task_id, None, task_id.bytes * 20_000, {}, None))
"""


def test_a_writer_killed_at_any_time_leaves_only_whole_tasks(folder, tmp_path) -> None:
    for round_ in range(5):
        argv = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while len(list(folder.glob("*"))) < 20 * (round_ + 1):
                assert writer.poll() is None
            os.kill(writer.pid, signal.SIGKILL)
        found = left(folder)
        assert all(e.packed_task == e.task_id.bytes * 20_000 for e in found)
        assert len(found) >= 20 * (round_ + 1) - 1  # one may be a half-written one
        assert not (folder / ASIDE).exists()
