"""One at a time: among threads, among processes, and after a holder's death."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store.cache import Store

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
        for _ in range(2):
            with store.lock(SPEC, cancel=threading.Event()):
                (path,) = (root / "v2/locks").iterdir()
                assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_lock_is_left_as_the_group_set_it(store: Store, root: Path):
    path = root / "v2/locks" / f"{'a' * 64}.lock"
    path.parent.mkdir(parents=True)
    path.touch()
    path.chmod(0o660)
    with store.lock(SPEC, cancel=threading.Event()):
        assert path.stat().st_mode & 0o777 == 0o660
