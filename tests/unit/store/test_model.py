"""A model of store, locks and leases, with processes that die at any point.

Processes are simulated: each has its own :class:`Store` and identity, and they share a
directory. Whatever changes the file system counts as a step; a process that is to die
does so at one of its steps, and from there on changes nothing, not even in its own
`finally` clauses. What must hold is looked at after every rule.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from globus_compute_apptainer import owners
from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.owners import Owner
from globus_compute_apptainer.store import files, integrity, room
from globus_compute_apptainer.store.cache import Store, StoredImage
from globus_compute_apptainer.store.index import SIF_MAGIC, SIF_MAGIC_AT
from globus_compute_apptainer.store.leases import Lease
from globus_compute_apptainer.store.manifest import Manifest
from globus_compute_apptainer.store.presence import Presence, Timing
from globus_compute_apptainer.store.upkeep import Upkeep

SPECS = ["sha256:" + letter * 64 for letter in "abc"]
HEAD = b"\0" * SIF_MAGIC_AT + SIF_MAGIC
BEFORE_ALL = 5_000_000  # more than there are process ids
PATH_STEPS = ("rename", "replace", "unlink", "mkdir", "touch", "rmdir")
OS_STEPS = ("link", "utime", "unlink", "open")


class Death(BaseException):
    """The process that runs now is killed."""


class Silent(Presence):
    """Gives no sign of life by itself: on one machine deaths are proven."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(Timing(beat=0.0, poll=0.0), owner=lambda: owner)

    def _thread(self) -> Any:
        return type("Nothing", (), {"start": lambda self: None})()


class World:
    """Who runs now, who lives, and when who runs is to die."""

    def __init__(self) -> None:
        self.here = Owner.current()
        self.alive: set[int] = set()
        self.running: Owner | None = None
        self.steps_left: int | None = None
        self.numbers = 0

    def step(self) -> None:
        here = threading.current_thread() is threading.main_thread()
        if self.running is None or not here:  # signs of life of other tests
            return
        if self.running.pid not in self.alive:
            raise Death
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.alive.discard(self.running.pid)
                raise Death

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for place, names in ((Path, PATH_STEPS), (os, OS_STEPS)):
                for name in names:
                    patch.setattr(place, name, self._stepping(getattr(place, name)))
            patch.setattr(os, "fsync", self._stepping(lambda _: None))
            for name in ("write_text", "write_bytes"):
                patch.setattr(Path, name, self._halfway(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", self._stepping(shutil.rmtree))
            # The same every time: names, and the order in which things are found.
            patch.setattr(secrets, "token_hex", lambda size: self._number(size))
            patch.setattr(os, "scandir", _sorted(os.scandir))
            listdir = os.listdir
            patch.setattr(os, "listdir", lambda *where: sorted(listdir(*where)))
            patch.setattr(integrity, "KEPT", 1000)
            patch.setattr(room, "_order", lambda thing: (thing.kind, thing.name))
            patch.setattr(owners, "_current", lambda _: self.running or self.here)
            patch.setattr(owners, "_may_live", lambda pid, _: pid in self.alive)
            yield

    def _number(self, size: int) -> str:
        self.numbers += 1
        return f"{self.numbers:0{size * 2}x}"

    def _stepping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return real(*args, **kwargs)

        return stepping

    def _halfway(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A file appears before its content does."""

        def halfway(path: Path, content: Any, **kwargs: Any) -> Any:
            self.step()
            real(path, content[: len(content) // 2], **kwargs)
            self.step()
            return real(path, content, **kwargs)

        return halfway


def _sorted(real: Callable[..., Any]) -> Callable[..., Any]:
    @contextlib.contextmanager
    def scandir(*args: Any) -> Iterator[Any]:
        with real(*args) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name))

    return scandir


class Process:
    """A simulated process, and what it holds."""

    def __init__(self, world: World, root: Path, number: int) -> None:
        here = world.here
        pid = BEFORE_ALL + number
        self.owner = Owner(here.host, here.boot, here.namespace, pid, 1)
        self.store = Store(root, "linux/amd64", Silent(self.owner))
        self.locks: dict[str, contextlib.AbstractContextManager[Any]] = {}
        self.leases: list[tuple[Lease, StoredImage]] = []
        world.alive.add(pid)


class Model(RuleBasedStateMachine):
    """The rules; a process is chosen by its number among those that live."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.world = World()
        self.patches = self.world.patched()
        self.patches.__enter__()
        self.processes: list[Process] = []
        self.graves: list[Process] = []  # what is collected could still clean up
        self.started = self.contents = self.time = 0
        self.published: dict[str, set[str]] = {spec: set() for spec in SPECS}

    def teardown(self) -> None:
        self.patches.__exit__(None, None, None)
        for process in (*self.processes, *self.graves):
            process.locks.clear()
        self.folder.cleanup()

    # -- running something in a process, which may die of it ----------------------

    def run(self, process: Process, die: int | None, do: Callable[[], Any]) -> Any:
        self.world.running, self.world.steps_left = process.owner, die
        try:
            return do()
        except Death:
            self.processes.remove(process)
            self.graves.append(process)
            return None
        finally:
            self.world.running = self.world.steps_left = None

    def process(self, which: int) -> Process:
        return self.processes[which % len(self.processes)]

    anyone = st.integers(0, 3)
    death = st.none() | st.integers(0, 30)
    spec = st.sampled_from(SPECS)

    @rule()
    @precondition(lambda self: len(self.processes) < 4)
    def start(self) -> None:
        self.started += 1
        process = Process(self.world, self.root, self.started)
        self.processes.append(process)
        self.run(process, None, process.store.prepare)
        left = [Owner.of_name(p.name) for p in (self.root / "v2/tmp").iterdir()]
        dead = [o for o in left if o is not None and o.pid not in self.world.alive]
        assert dead == [], "the next start removes what the dead left"

    @rule(which=anyone, spec=spec, die=death)
    @precondition(lambda self: self.processes)
    def lock(self, which: int, spec: str, die: int | None) -> None:
        process = self.process(which)
        held = any(spec in other.locks for other in self.processes)

        def take() -> bool:
            lock = process.store.lock(spec, cancel=threading.Event(), timeout=0)
            try:
                lock.__enter__()
            except StoreError as error:
                assert error.code == "lock-timeout"
                return False
            process.locks[spec] = lock
            return True

        taken = self.run(process, die, take)
        if taken is not None:
            assert taken is not held, "held by one who lives, or free"

    @rule(which=anyone, spec=spec, die=death)
    @precondition(lambda self: self.processes)
    def unlock(self, which: int, spec: str, die: int | None) -> None:
        process = self.process(which)
        if spec in process.locks:
            lock = process.locks.pop(spec)
            self.run(process, die, lambda: lock.__exit__(None, None, None))
            self.graves.append(process)

    @rule(which=anyone, spec=spec, same=st.booleans(), die=death)
    @precondition(lambda self: self.processes)
    def publish(self, which: int, spec: str, same: bool, die: int | None) -> None:
        process = self.process(which)
        if spec not in process.locks:
            self.lock(which, spec, None)
        if spec not in process.locks:
            return
        self.contents += not same
        content = HEAD + f"{spec if same else self.contents}".encode()
        self.published[spec].add(hashlib.sha256(content).hexdigest())

        def build() -> StoredImage:
            with process.store.workspace() as work:
                (work / "image.sif").write_bytes(content)
                return process.store.publish(work / "image.sif", manifest(spec))

        image = self.run(process, die, build)
        self.let_time_pass(spec)
        if image is not None:
            assert process.store.lookup(spec) == image

    def let_time_pass(self, spec: str) -> None:
        """Two publications are further apart than the ticks of a clock."""
        self.time += 10**9
        entry = self.root / f"v2/index/linux-amd64/{spec[7:9]}/{spec[7:]}.json"
        if entry.exists():
            os.utime(entry, ns=(self.time, self.time))

    @rule(which=anyone, spec=spec, die=death)
    @precondition(lambda self: self.processes)
    def use(self, which: int, spec: str, die: int | None) -> None:
        process = self.process(which)
        image = process.store.lookup(spec)
        if image is not None:
            lease = self.run(process, die, lambda: process.store.use(image))
            if lease is not None:
                process.leases.append((lease, image))

    @rule(which=anyone, die=death)
    @precondition(lambda self: self.processes)
    def let_go(self, which: int, die: int | None) -> None:
        process = self.process(which)
        if process.leases:
            lease, _ = process.leases.pop()
            lease.let_go()
        self.run(process, die, process.store.leases._beat)

    @rule(which=anyone, limit=st.sampled_from([0, 0, 100, 200]), die=death)
    @precondition(lambda self: self.processes)
    def make_room(self, which: int, limit: int, die: int | None) -> None:
        process = self.process(which)
        self.run(process, die, lambda: process.store.make_room(limit))

    @rule(which=anyone, die=death)
    @precondition(lambda self: self.processes)
    def remove_old(self, which: int, die: int | None) -> None:
        """Everything is old enough."""
        process = self.process(which)
        upkeep = Upkeep(process.store.top, process.store._presence)
        self.run(process, die, lambda: upkeep.sweep(-3600.0))
        for other in self.processes:
            for spec in other.locks:
                place = self.root / "v2/locks" / spec.removeprefix("sha256:")
                assert place.is_dir(), "held"

    @rule(which=anyone, spec=spec, cut=st.booleans(), die=death)
    @precondition(lambda self: self.processes)
    def damage(self, which: int, spec: str, cut: bool, die: int | None) -> None:
        """Never of an image in use: nothing could be promised of that."""
        process = self.process(which)
        image = process.store.lookup(spec)
        used = [i.path for p in self.processes for _, i in p.leases]
        if image is None or image.path in used:
            return
        size = image.manifest.size
        os.truncate(image.path, size - 1 if cut else size)
        if not cut:
            image.path.write_bytes(HEAD + b"!" * (size - len(HEAD)))
            damaged = process.store.lookup(spec)
            assert damaged is not None
            assert not process.store.examine(damaged).good
            if self.run(process, die, lambda: process.store.quarantine(damaged)):
                assert process.store.lookup(spec) is None
            elif image.path.exists():
                image.path.unlink()  # nobody finds it as it is

    # -- what must hold -----------------------------------------------------------

    @invariant()
    def whoever_looks_finds_what_was_published_or_nothing(self) -> None:
        for spec in SPECS:
            found = Store(self.root, "linux/amd64").lookup(spec)
            if found is not None:
                digest = files.sha256(found.path)
                assert found.manifest.image_digest == f"sha256:{digest}"
                assert found.manifest.spec_digest == spec
                assert digest in self.published[spec]

    @invariant()
    def what_is_in_use_is_there(self) -> None:
        for process in self.processes:
            for _, image in process.leases:
                digest = files.sha256(image.path)
                assert image.manifest.image_digest == f"sha256:{digest}"

    @invariant()
    def nothing_is_left_of_a_process_that_lives_and_does_nothing(self) -> None:
        tmp = self.root / "v2/tmp"
        if tmp.exists():
            left = [Owner.of_name(path.name) for path in tmp.iterdir()]
            assert not [o for o in left if o and o.pid in self.world.alive]


def manifest(spec: str) -> Manifest:
    return Manifest(
        spec_digest=spec, image_digest="", size=0, spec={}, base="", base_digest=None,
        python=None, python_version=None, os="", packages=(), platform="linux/amd64",
        apptainer_version="", builder_version="", created="", build_seconds=0.0,
    )  # fmt: skip


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
