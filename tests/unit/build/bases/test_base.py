"""Which base a build gets, and when anybody is asked: no Apptainer, no registry."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from globus_compute_apptainer.build import inventory, sif
from globus_compute_apptainer.build.bases import base as basing
from globus_compute_apptainer.build.bases import remote
from globus_compute_apptainer.build.bases.base import Bases
from globus_compute_apptainer.build.bases.registry import Name, Resolved
from globus_compute_apptainer.build.bases.tags import Known, Tags, file_key
from globus_compute_apptainer.build.inventory import Inventory
from globus_compute_apptainer.errors import BuildError
from globus_compute_apptainer.spec.model import ImageSpec
from globus_compute_apptainer.store.shelf import Shelf

EMPTY = Inventory("", "", "", "", "x86_64", "/bin", has_bash=True)
ONE, TWO, TOP = (f"sha256:{digit * 64}" for digit in "123")


class FakeRegistry:
    """Knows what a tag means, and counts who asks."""

    def __init__(self) -> None:
        self.means = Resolved(ONE, TOP, {"layers": [{"digest": TWO}]})
        self.down = False
        self.asked: list[str] = []
        self.made: list[str] = []
        self.job = None

    @contextlib.contextmanager
    def opened(self, job, host, *, http=False) -> Iterator[FakeRegistry]:
        self.job = job
        yield self

    def _ask(self, how: str) -> None:
        self.asked.append(how)
        if self.down:
            raise self.job.error("down", code="registry-unreachable")

    def digest_of(self, name: Name) -> str:
        self._ask("HEAD")
        return self.means.top_digest

    def resolve(self, name: Name, machine: str) -> Resolved:
        self._ask("GET")
        return self.means

    def attempt(self, job, source, name, found, target: Path) -> bool:
        self.made.append(found.digest)
        target.write_bytes(b"sif")
        return True


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry()
    monkeypatch.setattr(remote, "Registry", fake)
    monkeypatch.setattr(remote.pull, "attempt", fake.attempt)
    monkeypatch.setattr(inventory, "take", lambda *_: EMPTY)
    monkeypatch.setattr(basing, "check", lambda *_: sif.Part(1, 0, 0, "", 1, 2))
    return fake


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def get(make_job, tmp_path: Path, clock: Clock, registry) -> Callable[..., basing.Base]:
    shelf = Shelf(tmp_path / "v2", "bases")

    def get(name: str = "python:3.11", **changes) -> basing.Base:
        bases = Bases(shelf, tmp_path / "tags", now=clock)
        return bases.get(make_job(ImageSpec(name, "docker"), **changes))

    return get


def test_a_base_and_how_it_was_found(get, registry):
    base = get()
    assert (base.digest, base.inventory) == (ONE, EMPTY)
    assert base.sif.read_bytes() == b"sif"
    assert json.loads(json.dumps(base.lock)) == {
        "reference": "docker://python:3.11",
        "digest": ONE,
        "index_digest": TOP,
        "resolved_at": "2027-01-15T08:00:00Z",
        "kind": "registry",
        "layers": [TWO],
    }


def test_a_tag_is_believed_for_a_while(get, registry, clock):
    get()
    clock.now += remote.FRESH_SECONDS - 1
    get()
    assert registry.asked == ["GET"]
    clock.now += 2
    get()
    assert registry.asked == ["GET", "HEAD"]  # it is the same: the time starts anew
    clock.now += remote.FRESH_SECONDS - 1
    get()
    assert registry.asked == ["GET", "HEAD"]
    assert registry.made == [ONE]


def test_a_tag_that_moved_is_found_later(get, registry, clock):
    get()
    registry.means = Resolved(TWO, None, {})
    assert get().digest == ONE
    clock.now += remote.FRESH_SECONDS + 1
    assert get().digest == TWO
    assert registry.made == [ONE, TWO]


def test_a_fresh_job_asks_at_once(get, registry):
    get()
    registry.means = Resolved(TWO, None, {})
    assert get(fresh=True).digest == TWO


def test_a_clock_that_went_back_makes_nothing_eternal(get, registry, clock):
    get()
    clock.now -= 10 * 86400
    get()
    assert registry.asked == ["GET", "HEAD"]


def test_a_registry_that_is_down(get, registry, clock):
    first = get()
    registry.down = True
    clock.now += 365 * 86400
    assert get() == first
    with pytest.raises(BuildError) as caught:
        get(fresh=True)
    assert caught.value.code == "registry-unreachable"
    with pytest.raises(BuildError):
        get("other:1")


def test_only_silence_is_forgiven(get, registry, clock, monkeypatch):
    """A registry that says no, or lies, is not passed over."""
    get()
    clock.now += remote.FRESH_SECONDS + 1

    def refuse(name: Name) -> str:
        raise registry.job.error("gone", code="base-not-found")

    monkeypatch.setattr(registry, "digest_of", refuse)
    with pytest.raises(BuildError) as caught:
        get()
    assert caught.value.code == "base-not-found"


def test_a_digest_is_asked_for_once(get, registry, clock):
    name = f"python@{TOP}"
    get(name)
    registry.down = True
    clock.now += 365 * 86400
    assert get(name).digest == ONE
    assert get(name, fresh=True).digest == ONE
    assert get(f"other/name@{ONE}").digest == ONE  # by whatever name


def test_a_base_cut_short_is_made_again(get, registry):
    base = get()
    base.sif.write_bytes(b"s")
    assert get().sif.read_bytes() == b"sif"
    assert registry.made == [ONE, ONE]


def test_a_damaged_inventory_is_taken_again(get, registry):
    place = get().sif.parent
    (place / basing.INVENTORY_FILE).write_text("{")
    assert get().inventory == EMPTY
    assert "x86_64" in (place / basing.INVENTORY_FILE).read_text()
    assert registry.made == [ONE]


def test_damaged_tags_are_asked_again(get, registry, tmp_path):
    get()
    for path in (tmp_path / "tags").iterdir():
        path.write_text('{"format": 1}')
    assert get().digest == ONE
    assert registry.asked == ["GET", "GET"]


def test_tags_that_cannot_be_written_are_no_failure(get, tmp_path):
    (tmp_path / "tags").write_text("a file")
    assert get().digest == ONE


def test_a_base_that_is_no_sif(make_job, tmp_path):
    file = tmp_path / "x.sif"
    for content in (b"", b"x" * 5000, b"\0" * 32 + b"SIF_MAGIC\0" + b"\xff" * 500):
        file.write_bytes(content)
        with pytest.raises(BuildError) as caught:
            basing.check(make_job(), file)
        assert caught.value.code == "base-not-found"


def sif_with(filesystem: int) -> bytes:
    from globus_compute_apptainer.build import sif

    extra = sif._PARTITION.pack(filesystem, sif.SYSTEM).ljust(384, b"\0")
    size = 128 + sif._DESCRIPTOR.size
    row = (sif.PARTITION, True, 1, 0xF0000001, 0, size, 4, 4, 0, 0, 0, 0)
    part = sif._DESCRIPTOR.pack(*row, b"root".ljust(128, b"\0"), extra)
    counts = (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    where = (128).to_bytes(8, "little") + len(part).to_bytes(8, "little")
    head = b"\0" * 32 + b"SIF_MAGIC\0" + b"\0" * 38 + counts + where + b"\0" * 16
    return head + part + b"hsqs"


@pytest.mark.parametrize(("filesystem", "word"), [(5, "encrypted"), (2, "squashfs")])
def test_a_sif_on_which_nothing_can_be_laid(make_job, tmp_path, filesystem, word):
    file = tmp_path / "x.sif"
    file.write_bytes(sif_with(filesystem))
    with pytest.raises(BuildError, match=word) as caught:
        basing.check(make_job(), file)
    assert caught.value.code == "base-unsuitable"
    file.write_bytes(sif_with(1))
    basing.check(make_job(), file)


def test_files_are_known_by_what_changes_with_them(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    later = path.stat().st_mtime + 10
    key = file_key(path, later)
    assert key == file_key(path, later)
    assert file_key(path, later - 9) is None  # it may change again unseen
    path.write_text("other")
    assert file_key(path, later) != key
    tags = Tags(tmp_path / "tags")
    tags.write(Known(ONE, 5.0), *key)
    assert tags.read(*key) == Known(ONE, 5.0)
    assert tags.read(*key, "more") is None
