import os
import threading
import time

import pytest

from globus_compute_apptainer.worker.warm import WarmPool


class FakeContainer:
    def __init__(self, log, name):
        self.alive, self.name, self._log = True, name, log

    def close(self):
        self.alive = False
        self._log.append(f"-{self.name}")

    def abandon(self):
        self._log.append(f"abandoned {self.name}")


@pytest.fixture
def log():
    return []


@pytest.fixture
def pool():
    return WarmPool()


@pytest.fixture
def use(pool, log):
    """``use("a")``: lease a container and give it back."""

    def lease(name, limit=2):
        def start():
            log.append(f"+{name}")
            return FakeContainer(log, name)

        return pool.lease(name, start, limit)

    def use(name, limit=2):
        with lease(name, limit) as container:
            return container

    use.lease = lease
    return use


def test_container_is_reused(use, log):
    assert use("a") is use("a")
    assert log == ["+a"]


def test_least_recently_used_makes_room(use, log):
    for name in "abac":
        use(name)
    assert log == ["+a", "+b", "-b", "+c"]


def test_room_is_made_before_starting(use, log):
    for name in "aba":
        use(name, limit=1)
    assert log == ["+a", "-a", "+b", "-b", "+a"]


def test_lower_limit_applies_to_those_that_are_there(use, log):
    for name in "abc":
        use(name, limit=3)
    use("c", limit=1)
    assert log[-2:] == ["-a", "-b"]


def test_dead_container_is_replaced(use, log):
    use("a").alive = False
    assert use("a").alive
    assert log == ["+a", "-a", "+a"]


def test_dead_container_of_another_key_is_cleared_away(use, log):
    use("a").alive = False
    use("b")
    assert log == ["+a", "-a", "+b"]


def test_container_that_dies_in_use_is_not_kept(use, log):
    with use.lease("a") as container:
        container.alive = False
    assert log == ["+a", "-a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_container_is_closed_after_an_error(use, log, error):
    with pytest.raises(error), use.lease("a"):
        raise error
    use("a")
    assert log == ["+a", "-a", "+a"]


def test_threads_do_not_share_a_container(use, log):
    with use.lease("a") as mine:
        other = []
        thread = threading.Thread(target=lambda: other.append(use("a")))
        thread.start()
        thread.join()
        assert other[0] is not mine
    assert log == ["+a", "+a", "-a"]


def test_closing_ends_all(pool, use, log):
    use("a"), use("b")
    pool.close()
    pool.close()
    assert sorted(log[2:]) == ["-a", "-b"]


def test_forked_child_starts_empty(pool, use, log):
    use("a")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        use("a")
        os.write(write_end, ",".join(log).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 1000) == b"+a,abandoned a,+a"
    use("a")
    assert log == ["+a"]
    os.close(read_end), os.close(write_end)


def test_forked_child_does_not_keep_the_worker_s_container_alive(started, asker):
    """The guard notices the worker's end by the last holder's going away."""

    def pid():
        import os

        return os.getpid()

    pool = WarmPool()
    container = started()
    with pool.lease("a", lambda: container, 1):
        pass
    release, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.read(release, 1)
        os._exit(0)
    task = asker.ask(container, pid)
    container._forget()  # as the kernel does when a worker dies
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{task}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(hold)
    os.waitpid(child, 0)
    os.close(release)
    container.abandon()


def test_nothing_is_kept_where_every_task_has_its_own(use, log):
    use("a", limit=0), use("a", limit=0)
    assert log == ["+a", "-a", "+a", "-a"]
