"""Whoever is killed: others' tasks go on, and with the pool everything goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from globus_compute_common import messagepack
from globus_compute_sdk.serialize import ComputeSerializer

from globus_compute_apptainer.worker import place
from globus_compute_apptainer.worker.keeper.owner import start_of

from .conftest import Inside, pack
from .tree import alive, descendants, parent, processes, survivors, until
from .workers import Pool, Worker

pytestmark = pytest.mark.apptainer


def wait_for(started, goes_on):
    """A task that says who it is and then runs until it is told to end."""
    import os
    import subprocess

    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(started, "w") as fifo:
        fifo.write(str(os.getpid()))
    with open(goes_on) as fifo:
        return fifo.read()


def hold_the_interpreter(started, goes_on):
    import os
    import re

    with open(started, "w") as fifo:
        fifo.write(str(os.getpid()))
    re.match(r"(a+)+b", "a" * 200)  # never returns, never lets another thread run


def ignore_signals(started, goes_on):
    import os
    import signal
    import time

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    with open(started, "w") as fifo:
        fifo.write(str(os.getpid()))
    while True:
        time.sleep(1000)


class Task:
    """A task that runs on a worker, known by two named pipes."""

    def __init__(self, inside: Inside, worker: Worker, name: str, function) -> None:
        self._worker = worker
        self._started = inside.run_dir / f"{name}-started"
        self._goes_on = inside.run_dir / f"{name}-goes-on"
        for fifo in (self._started, self._goes_on):
            fifo.unlink(missing_ok=True)
            os.mkfifo(fifo)
        packed, task_id = pack(function, str(self._started), str(self._goes_on))
        worker.send(packed_task=packed, task_id=str(task_id), terms=inside.told())
        self.pid = int(self._started.read_text())

    def finish(self) -> str:
        self._goes_on.write_text("well")
        result = messagepack.unpack(self._worker.answer())
        assert not result.is_error, result.data
        return ComputeSerializer().deserialize(result.data)


@pytest.fixture
def lone(inside: Inside, tmp_path: Path) -> Inside:
    """A run folder of one test."""
    return Inside(inside.order, tmp_path)


@pytest.fixture
def begin(lone: Inside) -> Callable[..., Task]:
    def begin(worker: Worker, name: str, function=wait_for) -> Task:
        return Task(lone, worker, name, function)

    return begin


@pytest.fixture
def workers() -> Iterator[Pool]:
    pool = Pool(2)
    folder = place.folder(place.Pool(pool.manager.pid, start_of(pool.manager.pid)))
    pool.folder = folder
    mounts = Path("/proc/self/mounts").read_text()
    yield pool
    everything = of(pool)
    pool.close()
    until(lambda: not survivors(everything), lambda: f"{survivors(everything)}")
    until(lambda: not folder.exists(), "the pool's folder is left")
    assert Path("/proc/self/mounts").read_text() == mounts


def keeper(pool: Pool) -> int:
    (found,) = [p for p, (_, c) in processes().items() if f" {pool.folder} " in c]
    return found


def of(pool: Pool) -> dict[int, str]:
    """All processes of a pool."""
    keepers = [p for p, (_, c) in processes().items() if f" {pool.folder} " in c]
    ancestors = [pool.manager.pid, *keepers]
    known = processes()
    own = {pid: known[pid][1] for pid in ancestors if pid in known}
    return descendants(*ancestors) | own


@pytest.mark.parametrize("starter", [True, False])
@pytest.mark.parametrize("function", [wait_for, hold_the_interpreter, ignore_signals])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_dies_and_the_other_s_task_goes_on(
    workers, begin, starter, function, number
):
    first, second = workers.workers
    victim, other = (first, second) if starter else (second, first)
    doomed, task = (
        (begin(victim, "doomed", function), begin(other, "other"))
        if starter
        else (begin(other, "other"), begin(victim, "doomed", function))
    )
    if not starter:
        doomed, task = task, doomed
    guard = parent(doomed.pid)
    zygote = parent(guard)
    assert parent(parent(task.pid)) == zygote
    family = {guard, *descendants(guard)}
    os.kill(victim.pid, number)
    until(lambda: not alive(family), "the dead worker's task lives")
    assert task.finish() == "well"
    again = begin(other, "again")
    assert parent(parent(again.pid)) == zygote
    assert again.finish() == "well"


@pytest.mark.parametrize("function", [wait_for, hold_the_interpreter, ignore_signals])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_manager_dies_and_all_goes(workers, begin, function, number):
    for n, worker in enumerate(workers.workers):
        begin(worker, f"task {n}", function)
    everything = of(workers)
    text = " ".join(everything.values())
    assert "Apptainer runtime" in text and "squashfuse" in text
    workers.manager.send_signal(number)
    workers.manager.wait(60)
    until(lambda: not survivors(everything), lambda: f"{survivors(everything)}")
    until(lambda: not workers.folder.exists(), "the pool's folder is left")


def test_the_whole_process_group_is_killed(workers, begin):
    for n, worker in enumerate(workers.workers):
        begin(worker, f"task {n}")
    everything = of(workers)
    os.killpg(workers.manager.pid, signal.SIGKILL)
    workers.manager.wait(60)
    until(lambda: not survivors(everything), lambda: f"{survivors(everything)}")
    until(lambda: not workers.folder.exists(), "the pool's folder is left")


def test_the_keeper_is_killed_and_tasks_go_on(workers, begin):
    first, second = workers.workers
    task = begin(first, "task")
    zygote = parent(parent(task.pid))
    os.kill(keeper(workers), signal.SIGKILL)
    other = begin(second, "other")
    assert parent(parent(other.pid)) != zygote
    assert task.finish() == "well"
    until(lambda: not alive([zygote]), "a zygote that nobody keeps")
    again = begin(first, "again")
    assert parent(parent(again.pid)) == parent(parent(other.pid))
    assert (again.finish(), other.finish()) == ("well", "well")


def test_the_keeper_is_asked_to_end(workers, begin):
    """As a batch system does at the end of a job's time."""
    for n, worker in enumerate(workers.workers):
        begin(worker, f"task {n}")
    everything = of(workers).keys() - {workers.manager.pid}
    everything -= {worker.pid for worker in workers.workers}
    os.kill(keeper(workers), signal.SIGTERM)
    until(lambda: not alive(everything), "containers are left")
    for worker in workers.workers:
        result = messagepack.unpack(worker.answer())
        assert result.error_details.code == "container-crashed"
