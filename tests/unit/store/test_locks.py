"""One at a time: among threads, among processes, and after a holder's death."""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner, owned_name
from globus_compute_apptainer.store import locks
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.presence import (
    HERE,
    Presence,
    Timing,
)
from globus_compute_apptainer.store.records import Records

SPEC = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
HOLD = """\
import sys, threading
from pathlib import Path
from globus_compute_apptainer.store.cache import Store
with Store(Path(sys.argv[1])).lock(sys.argv[2], cancel=threading.Event()):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(root: Path):
    """A process that holds the lock of SPEC."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), SPEC],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class Waiter(threading.Thread):
    """Takes the lock in a thread of its own."""

    def __init__(self, store: Store, spec: str = SPEC) -> None:
        super().__init__(daemon=True)
        self.store, self.spec, self.cancel = store, spec, threading.Event()
        self.held, self.error = threading.Event(), None
        self.release = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self.store.lock(self.spec, cancel=self.cancel):
                self.held.set()
                self.release.wait(60)
        except StoreError as error:
            self.error = error

    def finish(self) -> None:
        self.release.set()
        self.join(30)
        assert not self.is_alive()


def test_threads_of_one_process_take_turns(store: Store):
    first = Waiter(store)
    assert first.held.wait(30)
    second = Waiter(store)
    assert not second.held.wait(0.5)
    first.finish()
    assert second.held.wait(30)
    second.finish()


def test_another_digest_is_another_lock(store: Store):
    first, second = Waiter(store), Waiter(store, OTHER)
    assert first.held.wait(30)
    assert second.held.wait(30)
    first.finish()
    second.finish()


def test_processes_take_turns(store: Store, holder):
    waiter = Waiter(store)
    assert not waiter.held.wait(0.5)
    holder.communicate("")
    assert waiter.held.wait(30)
    waiter.finish()


def test_a_killed_holder_frees_it(store: Store, holder):
    waiter = Waiter(store)
    assert not waiter.held.wait(0.3)
    holder.kill()
    assert waiter.held.wait(30)
    waiter.finish()


def test_waiting_can_be_cancelled(store: Store, holder):
    waiter = Waiter(store)
    waiter.cancel.set()
    waiter.join(30)
    assert not waiter.held.is_set()
    assert waiter.error is not None
    assert waiter.error.code == "build-cancelled"


def test_an_exception_frees_it(store: Store):
    never = threading.Event()
    with pytest.raises(RuntimeError), store.lock(SPEC, cancel=never):
        raise RuntimeError
    with store.lock(SPEC, cancel=never):
        pass


def test_counting_under_the_lock_loses_nothing(store: Store, tmp_path: Path):
    """Read, add, write: wrong as soon as two do it at once."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    program = """\
import sys, threading
from pathlib import Path
from globus_compute_apptainer.store.cache import Store
store, counter = Store(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(5):
    with store.lock(sys.argv[3], cancel=threading.Event()):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", program, str(store.root), str(counter), SPEC]
    running = [subprocess.Popen(argv, env=env) for _ in range(4)]
    deadline = time.monotonic() + 120
    for process in running:
        assert process.wait(deadline - time.monotonic()) == 0
    assert counter.read_text() == "20"


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_lock(store: Store, root: Path, umask: int, mode: int):
    before = os.umask(umask)
    try:
        for number in (1, 2):
            with store.lock(SPEC, cancel=threading.Event()):
                (path,) = (root / "v2/locks" / ("a" * 64)).iterdir()
                assert path.name == f"{number:08d}"
                assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


# -- owners and their deaths ----------------------------------------------------

FAST = Timing(beat=0.05, expiry=0.6, confirm=0.2, poll=0.01)


def elsewhere(number: int) -> Presence:
    """A process on another machine, which nobody here can prove dead."""
    owner = replace(Owner.current(), host=f"{number:010x}", pid=number)
    return Presence(FAST, owner=lambda: owner)


def hold(folder: Path, presence: Presence, timeout: float = 60.0, **more):
    never = threading.Event()
    return locks.hold(folder, cancel=never, timeout=timeout, presence=presence, **more)


def make(folder: Path, presence: Presence, number: int, name: str) -> bool:
    with Records.opened(folder) as records:
        return records.make(number, locks._Lock(folder, presence)._told(name))


def abandon(folder: Path, presence: Presence, content: bytes | None = None) -> Path:
    """A record whose process gives no sign of life any more."""
    assert make(folder, presence, 1, "gone")
    path = folder / "00000001"
    if content is not None:
        path.write_bytes(content)
    return path


class Waiting:
    """Waits for a lock by a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        here = elsewhere(2)
        here.timing = Timing(beat=1, expiry=10, confirm=3)
        here.clock = lambda: self.now
        self._lock = locks._Lock(folder, here)

    def holds_after(self, seconds: float) -> bool:
        self.now += seconds
        return self._lock.attempt(locks.ignore) is not None


def test_a_number_is_used_once_and_old_records_go(tmp_path: Path):
    for number in range(1, 4):
        with hold(tmp_path / "lock", HERE):
            names = [path.name for path in (tmp_path / "lock").iterdir()]
            assert names == [f"{number:08d}"]
    (left,) = (tmp_path / "lock").iterdir()
    assert left.name == "00000003.free"


def test_a_holder_elsewhere_keeps_it_for_as_long_as_it_gives_signs(tmp_path: Path):
    path = abandon(tmp_path / "lock", elsewhere(1))
    waiting = Waiting(tmp_path / "lock")
    future = int(time.time()) + 86400  # so that only watching can tell
    for second in range(future, future + 200, 9):
        os.utime(path, (second, second))
        assert not waiting.holds_after(9)
    assert not waiting.holds_after(9)
    assert waiting.holds_after(1)


def test_who_holds_it_is_told_to_those_who_waited_in_vain(tmp_path: Path):
    alive = elsewhere(1)
    with (
        hold(tmp_path / "lock", alive),
        pytest.raises(StoreError) as caught,
        hold(tmp_path / "lock", elsewhere(2), timeout=0),
    ):
        pass
    assert caught.value.code == "lock-timeout"
    assert f"process {os.getpid()} on {socket.gethostname()}" in caught.value.message


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", bytes(99)])
def test_silence_elsewhere_frees_it_also_where_the_record_is_damaged(
    tmp_path: Path, content: bytes | None
):
    abandon(tmp_path / "lock", elsewhere(1), content)
    with hold(tmp_path / "lock", elsewhere(2)) as held:
        held.check()
        assert [p.name for p in (tmp_path / "lock").iterdir()] == ["00000002"]


@pytest.mark.parametrize("jump", [-86400.0, 0.0, 86400.0])
def test_clocks_that_jump_condemn_nobody_who_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
):
    monkeypatch.setattr(locks, "file_system_time", lambda _: 100.0 + jump)
    path = abandon(tmp_path / "lock", elsewhere(1))
    waiting = Waiting(tmp_path / "lock")
    for second in range(0, 200, 2):
        os.utime(path, (second, second))
        assert not waiting.holds_after(2)


def test_long_silence_by_the_file_systems_clock_is_watched_only_shortly(tmp_path: Path):
    path = abandon(tmp_path / "lock", elsewhere(1))
    os.utime(path, (1, 1))
    waiting = Waiting(tmp_path / "lock")
    assert not waiting.holds_after(0)
    assert not waiting.holds_after(2)
    assert waiting.holds_after(1)


def test_a_holder_that_was_replaced_notices_at_the_check(tmp_path: Path):
    stopped = elsewhere(1)
    held = hold(tmp_path / "lock", stopped)
    first = held.__enter__()
    first.check()
    stopped._start_anew()  # as if it were stopped, or cut off from the file system
    with hold(tmp_path / "lock", elsewhere(2)) as second:
        with pytest.raises(StoreError) as caught:
            first.check()
        assert caught.value.code == "lock-lost"
        held.__exit__(None, None, None)  # and harms nobody
        second.check()


def test_what_the_dead_left_is_cleared_by_who_takes_over(tmp_path: Path):
    dead, cleared = elsewhere(1), []
    path = abandon(tmp_path / "lock", dead)
    (path.parent / ".progress").write_text("{}")
    with hold(tmp_path / "lock", elsewhere(2), clear=cleared.append):
        assert cleared == [dead.owner()]
        assert [p.name for p in path.parent.iterdir()] == ["00000002"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_it_works_where_there_are_no_hard_links(tmp_path, monkeypatch, number) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        with hold(tmp_path / "lock", HERE) as held:
            held.check()
            with pytest.raises(StoreError), hold(tmp_path / "lock", HERE, timeout=0):
                pass
    assert [p.name for p in (tmp_path / "lock").iterdir()] == ["00000002.free"]


def test_a_link_whose_answer_was_lost_was_made(tmp_path, monkeypatch) -> None:
    link = os.link

    def lost(*args: str, **where: int) -> None:
        link(*args, **where)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost)
    with hold(tmp_path / "lock", HERE, timeout=0) as held:
        held.check()


def test_the_store_removes_the_unfinished_work_of_a_dead_holder(root: Path):
    dead = elsewhere(1)
    store = Store(root, presence=dead)
    store.prepare()
    work = root / "v2/tmp" / owned_name("image", dead.owner())
    work.mkdir()
    (work / "image.sif").write_text("half")
    abandon(root / "v2/locks" / SPEC[7:], dead)
    other = Store(root, presence=elsewhere(2))
    with other.lock(SPEC, cancel=threading.Event(), timeout=60):
        assert not work.exists()


def test_a_record_of_this_process_that_nobody_holds_is_no_obstacle(tmp_path: Path):
    """As where releasing it failed, for want of a working file system."""
    mine = Presence(FAST)
    abandon(tmp_path / "lock", mine)
    with hold(tmp_path / "lock", mine, timeout=0):
        pass


def test_a_stopped_process_here_is_not_taken_for_dead(tmp_path: Path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with (
            pytest.raises(StoreError, match="held"),
            hold(tmp_path / "cache/v2/locks" / SPEC[7:], Presence(FAST), timeout=1.5),
        ):
            pass
    finally:
        os.kill(holder.pid, signal.SIGCONT)


def test_those_who_look_late_withdraw(tmp_path: Path):
    """One listed the records, was slow, and makes a number that was used already."""
    folder, late = tmp_path / "lock", Presence(FAST)
    folder.mkdir()
    (folder / "00000007").write_text("{}")
    with Records.opened(folder) as records:
        assert make(folder, late, 6, "late")
        assert not locks._is_next(records, {5: True}, 6)
        assert [path.name for path in folder.iterdir()] == ["00000007"]
        (folder / "00000008.free").touch()
        assert make(folder, late, 8, "late")
        assert not locks._is_next(records, {7: False}, 8)


def test_those_who_wait_see_what_the_holder_does(tmp_path: Path):
    seen, seen_it = [], threading.Event()

    def watch(news: locks.News) -> None:
        seen.append(news)
        if news.get("stage") == "pip":
            seen_it.set()

    def wait() -> None:
        with hold(tmp_path / "lock", Presence(FAST), watch=watch):
            pass

    with hold(tmp_path / "lock", HERE) as held:
        thread = threading.Thread(target=wait)
        thread.start()
        held.tell({"stage": "pull"}, at_once=True)
        held.tell({"stage": "dropped"})
        held.tell({"stage": "pip"}, at_once=True)
        assert seen_it.wait(60)
    thread.join(60)
    assert not thread.is_alive()
    assert {"stage": "dropped"} not in seen
    assert [p.name for p in (tmp_path / "lock").iterdir()] == ["00000002.free"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', "\xff"])
def test_damaged_news_are_no_news(tmp_path: Path, text: str):
    seen = []
    with hold(tmp_path / "lock", HERE):
        (tmp_path / "lock/.progress").write_text(text, encoding="latin-1")
        with (
            pytest.raises(StoreError),
            hold(tmp_path / "lock", HERE, timeout=0.2, watch=seen.append),
        ):
            pass
    assert seen == []


def test_a_forked_child_frees_nothing_of_its_parents(tmp_path: Path):
    with hold(tmp_path / "lock", HERE) as held:
        child = multiprocessing.get_context("fork").Process(target=held.release)
        child.start()
        child.join(60)
        assert child.exitcode == 0
        held.check()


def test_killed_holders_one_after_the_other(tmp_path: Path):
    """Every death is noticed, and never do two hold it."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    fork = multiprocessing.get_context("fork")
    reader, writer = os.pipe()  # which no death leaves locked, as a queue may be
    everybody = [
        fork.Process(
            target=_add_and_stay, args=(tmp_path, counter, writer), daemon=True
        )
        for _ in range(6)
    ]
    for process in everybody:
        process.start()
    for _ in everybody:
        assert select.select([reader], [], [], 60)[0]
        os.kill(int(os.read(reader, 16)), signal.SIGKILL)
    for process in everybody:
        process.join(60)
    os.close(reader)
    os.close(writer)
    assert counter.read_text() == "6"


def _add_and_stay(folder: Path, counter: Path, taken: int) -> None:
    with hold(folder / "lock", Presence(Timing(poll=0.01))) as held:
        held.check()
        counter.write_text(str(int(counter.read_text()) + 1))
        os.write(taken, f"{os.getpid():16d}".encode())
        signal.pause()
