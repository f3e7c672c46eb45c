"""One container for many workers: who starts it, who shares it, and when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import TaskError
from globus_compute_apptainer.worker import place
from globus_compute_apptainer.worker.container import Container, NotSentError
from globus_compute_apptainer.worker.inside.processes import descendants
from globus_compute_apptainer.worker.keeper import memory
from globus_compute_apptainer.worker.node import Bounds, Node


def zygote():
    import os

    with open(f"/proc/{os.getppid()}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def hold(size):
    import builtins

    builtins.held = b"x" * size


def pids():
    import os

    return os.getpid(), os.getppid()


def wait_for(fifo):
    with open(fifo) as file:
        return file.read()


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def keepers(pool: place.Pool) -> list[int]:
    folder = str(place.folder(pool)).encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"\0" + folder + b"\0" in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_the_same_key_shares_a_container(agent_launch, start, asker):
    first, second, other = (start(agent_launch(), key) for key in ("a", "a", "b"))
    one, two, three = (asker.ask(child, zygote) for child in (first, second, other))
    assert one == two != three
    assert asker.ask(first, pids) != asker.ask(second, pids)


def test_what_starts_a_container_is_made_ready_only_where_there_is_none(
    agent_launch, node, asker
):
    asked = []

    def prepare(key):
        asked.append(key)
        return contextlib.nullcontext((agent_launch(), ()))

    children = [
        Container(node, key, lambda key=key: prepare(key), Bounds(120.0))
        for key in ("a", "a", "b", "a")
    ]
    assert asked == ["a", "b"]
    assert len({asker.ask(child, zygote) for child in children}) == 2
    for child in children:
        child.close()


def test_what_cannot_be_made_ready_is_told_and_harms_nobody(agent_launch, start, node):
    def prepare():
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        Container(node, "key", prepare, Bounds(120.0))
    assert start(agent_launch(), "key").alive


def test_many_workers_at_once_start_one_keeper_and_one_container(
    agent_launch, worker_pool, asker, given, tmp_path
):
    """Each worker is a process of its own, and none is the first to be told."""
    starts = tmp_path / "starts"
    launch = agent_launch()
    counting = ("sh", "-c", f'echo x >>{starts}; exec "$@"', "sh", *launch.argv)
    launch = dataclasses.replace(launch, argv=counting)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.SimpleQueue()

    def work() -> None:
        barrier.wait(60)
        child = Container(
            Node(lambda: worker_pool), "shared", given(launch), Bounds(120.0)
        )
        results.put(asker.ask(child, zygote))
        barrier.wait(120)  # all have it before the first lets go
        child.close()

    workers = [context.Process(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert len(set(found)) == 1
    assert starts.read_text() == "x\n"
    assert len(keepers(worker_pool)) == 1


def test_a_failing_start_is_told_to_all_who_wait(agent_launch, node, given):
    launch = agent_launch()
    script = ("sh", "-c", "sleep 1; echo no way >&2; exit 9")
    launch = dataclasses.replace(launch, argv=script)
    errors: list[TaskError] = []

    def ask() -> None:
        with pytest.raises(TaskError) as caught:
            Container(node, "failing", given(launch), Bounds(120.0))
        errors.append(caught.value)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [error.ended for error in errors] == ["exit code 9"] * 4
    assert all(error.tail == ("no way",) for error in errors)


def test_after_a_failing_start_the_next_is_tried(agent_launch, start, asker):
    launch = agent_launch()
    with pytest.raises(TaskError):
        start(dataclasses.replace(launch, argv=("false",)), "again")
    assert asker.ask(start(launch, "again"), zygote)


def test_the_least_recently_used_container_makes_room(agent_launch, start, asker):
    a, b = (start(agent_launch(), key, warm_per_node=2) for key in "ab")
    first, second = asker.ask(a, zygote), asker.ask(b, zygote)
    assert asker.ask(a, zygote) == first  # used after b was
    c = start(agent_launch(), "c", warm_per_node=2)
    until(lambda: not alive(second))
    assert asker.ask(a, zygote) == first and asker.ask(c, zygote)
    assert not b.alive


def test_containers_that_take_too_much_memory_make_room(agent_launch, start, asker):
    a, b = (start(agent_launch(), key) for key in "ab")
    first, second = asker.ask(a, zygote), asker.ask(b, zygote)
    start(agent_launch(), "c", warm_memory=10**12)
    assert alive(first) and alive(second)
    asker.ask(a, hold, 40_000_000)
    enough = memory.taken({first} | descendants({first})) + 10_000_000
    start(agent_launch(), "d", warm_memory=enough)
    until(lambda: not alive(second))
    assert alive(first)
    start(agent_launch(), "e", warm_memory=1)
    until(lambda: not alive(first))


def test_memory_that_is_shared_counts_once(agent_launch, start, asker):
    children = [start(agent_launch(), "same") for _ in range(4)]
    (ours,) = {asker.ask(child, zygote) for child in children}
    family = descendants({ours})
    assert len(family) >= 8  # guards and children
    shared, all_resident = memory.taken(family), memory.taken(family, enough=2**50)
    assert 0 < shared < all_resident
    assert memory.taken({2**22 + 1}) == 0  # no such process


def test_what_is_allowed_is_a_part_of_what_is_there():
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.allowed() <= machine // 2


def test_a_container_in_which_a_task_runs_is_not_ended(
    agent_launch, start, asker, tmp_path
):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    busy = start(agent_launch(), "busy", warm_per_node=1)
    its = asker.ask(busy, zygote)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(asker.ask(busy, wait_for, str(fifo)))
    )
    thread.start()
    with fifo.open("w") as writer:  # it has begun
        other = start(agent_launch(), "other", warm_per_node=1)
        assert asker.ask(other, zygote) != its
        assert alive(its)
        writer.write("done")
    thread.join(120)
    assert answers == ["done"]


@pytest.fixture
def asked(agent_launch, start, asker):
    """``asked(key, function, idle_timeout)``: a child that has answered, and what;
    however long this machine takes between the two."""
    launch = agent_launch()

    def asked(key, function, idle_timeout):
        deadline = time.monotonic() + 120
        while True:
            child = start(launch, key, idle_timeout=idle_timeout)
            try:
                return child, asker.ask(child, function)
            except NotSentError:
                assert time.monotonic() < deadline

    return asked


def test_an_idle_container_ends_and_another_is_started(asked):
    child, first = asked("idle", zygote, 0.3)
    until(lambda: not child.alive and not alive(first))
    assert asked("idle", zygote, 60.0)[1] != first


def test_a_child_that_retires_answers_what_it_was_sent(agent_launch, start, asker):
    """However often the keeper ends a container just as a task is sent: it is run
    once, or it is said that it was not sent."""
    launch = agent_launch()
    child = start(launch, "brief", idle_timeout=0.02)
    for n in range(40):
        try:
            assert len(asker.ask(child, pids)) == 2
        except NotSentError:
            child = start(launch, "brief", idle_timeout=0.02)
        time.sleep(0.0005 * n)  # to meet the end at different moments


def test_containers_that_end_do_not_touch_those_that_start(agent_launch, start, asker):
    launch = agent_launch()
    for n in range(12):
        child = start(launch, f"short {n}", idle_timeout=0.01)
        with contextlib.suppress(NotSentError):
            assert len(asker.ask(child, pids)) == 2


def test_the_pool_ends_with_its_owner(agent_launch, start, asker, owner, worker_pool):
    child = start(agent_launch())
    task, guard = asker.ask(child, pids)
    its = asker.ask(child, zygote)
    (keeper,) = keepers(worker_pool)
    owner.kill()
    until(lambda: not any(map(alive, (task, guard, its, keeper))))
    until(lambda: not place.folder(worker_pool).exists())


def test_a_keeper_that_was_killed_is_replaced(agent_launch, start, asker, worker_pool):
    child = start(agent_launch(), "shared")
    (keeper,) = keepers(worker_pool)
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not alive(keeper))
    other = start(agent_launch(), "shared")
    assert asker.ask(other, pids)
    assert keepers(worker_pool) != [keeper]
    del child


def test_garbage_does_not_harm_the_keeper(agent_launch, start, asker, worker_pool):
    import socket

    child = start(agent_launch(), "shared")
    address = str(place.folder(worker_pool) / place.SOCKET)
    for said in (b"", b"garbage", b"{}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(address)
            if said:
                other.send(said)
    assert asker.ask(start(agent_launch(), "shared"), zygote) == asker.ask(
        child, zygote
    )
