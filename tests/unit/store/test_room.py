"""What goes when room is needed, in which order, and what never does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import room
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.index import SIF_MAGIC, SIF_MAGIC_AT
from globus_compute_apptainer.store.leases import Leases
from globus_compute_apptainer.store.room import Room
from globus_compute_apptainer.store.shelf import Shelf

SIF = b"\0" * SIF_MAGIC_AT + SIF_MAGIC
BASE = "sha256:" + "b" * 64
LETTERS = "acdef"


def spec(letter: str) -> str:
    return "sha256:" + letter * 64


@pytest.fixture
def fill(store, sif, manifest):
    """Publish images, the first one used longest ago; their sizes in bytes."""

    def make(*letters: str, base: str | None = None):
        images = {}
        for age, letter in enumerate(letters):
            sif.write_bytes(SIF + letter.encode() * 5000)
            image = store.publish(sif, manifest(letter, base_digest=base))
            os.utime(image.path.parent, (1000 + age, 1000 + age))
            images[letter] = image
        store.leases.close()  # what was just published stays for a while
        return images

    return make


def total(store: Store) -> int:
    return store.make_room(2**60, dry=True).before


def test_what_was_unused_for_longest_goes_first(store, fill) -> None:
    images = fill("a", "c", "d")
    size = total(store)
    freed = store.make_room(size - 1)
    assert [thing.name for thing in freed.things] == [
        images["a"].path.parent.name,
    ]
    assert freed.before - freed.left == freed.size > 5000
    assert store.lookup(spec("a")) is None
    assert store.lookup(spec("c"))
    assert not images["a"].path.parent.exists()
    assert list((store.top / "tmp").iterdir()) == []


def test_the_entry_of_an_image_goes_with_it(store, fill) -> None:
    fill("a")
    store.make_room(0)
    assert list((store.top / "index").rglob("*.json")) == []


def test_nothing_goes_where_there_is_room(store, fill) -> None:
    fill(*LETTERS)
    size = total(store)
    freed = store.make_room(size)
    assert (freed.things, freed.left) == ((), size)


def test_a_dry_run_says_the_same_and_does_nothing(store, fill) -> None:
    fill(*LETTERS)
    limit = total(store) // 2
    dry = store.make_room(limit, dry=True)
    assert all(store.lookup(spec(letter)) for letter in LETTERS)
    assert store.make_room(limit) == dry
    assert dry.things


def test_what_is_in_use_stays_whatever_the_limit(store, root, fill) -> None:
    images = fill("a", "c")
    lease = store.use(images["a"])
    assert lease is not None
    freed = Store(root, platform="linux/amd64").make_room(0)
    assert [thing.path for thing in freed.things] == [images["c"].path.parent]
    assert store.lookup(spec("a")) == images["a"]
    lease.let_go()


def test_what_was_just_published_stays_for_those_who_wait_for_it(store, sif, manifest):
    image = store.publish(sif, manifest("a"))
    assert store.make_room(0).things == ()
    assert store.use(image) is not None


def test_using_an_image_makes_it_young(store, fill) -> None:
    images = fill("a", "c")
    lease = store.use(images["a"])
    lease.let_go()
    store.leases.close()
    freed = store.make_room(total(store) - 1)
    assert [thing.path for thing in freed.things] == [images["c"].path.parent]


def test_what_is_gone_cannot_be_used(store, fill) -> None:
    images = fill("a")
    store.make_room(0)
    assert store.use(images["a"]) is None
    store.leases.close()
    assert store.leases.in_use() == set()


def test_a_lease_taken_at_the_last_moment_brings_it_back(store, root, fill) -> None:
    """Who removes looked at the leases before, moves the image, and looks again."""
    images = fill("a")
    reader = Store(root, platform="linux/amd64")
    leases, before = store.leases.in_use, []

    def in_use() -> set[str]:
        found = leases()
        if not before:
            before.append(reader.use(images["a"]))
        return found

    store.leases.in_use = in_use
    assert store.make_room(0).things == ()
    assert before[0] is not None
    assert reader.lookup(spec("a")) == images["a"]
    assert list((store.top / "tmp").iterdir()) == []


def put(store: Store, kind: str, key: str, age: int, size: int = 5000) -> Path:
    shelf = Shelf(store.top, kind, store.leases)
    with shelf.workspace() as work:
        (work / "file").write_bytes(bytes(size))
        place = shelf.keep(key, work)
    os.utime(place, (age, age))
    store.leases.close()
    return place


def test_bases_and_layers_count_and_go_in_turn(store, fill) -> None:
    layer = put(store, "layers", spec("1"), age=1)
    base = put(store, "bases", BASE, age=2)
    image = fill("a")["a"].path.parent
    freed = store.make_room(0)
    assert [thing.path for thing in freed.things] == [layer, base, image]
    assert freed.left == 0


def test_a_base_stays_while_an_image_was_made_of_it(store, fill) -> None:
    base = put(store, "bases", BASE, age=1)
    images = fill("a", "c", base=BASE)
    lease = store.use(images["c"])
    freed = store.make_room(0)
    assert [thing.name for thing in freed.things] == [images["a"].path.parent.name]
    assert base.exists()
    lease.let_go()
    store.leases.close()
    freed = store.make_room(0)
    assert [thing.kind for thing in freed.things] == ["images", "bases"]


def test_what_a_running_build_found_on_a_shelf_stays(store, root) -> None:
    place = put(store, "layers", spec("1"), age=1)
    with store.leases.building():
        assert Shelf(store.top, "layers", store.leases).find(spec("1")) == place
        assert Store(root).make_room(0).things == ()
    store.leases.close()
    assert Store(root).make_room(0).size == 5000


def test_the_package_cache_goes_last_and_not_while_a_build_uses_it(store, fill) -> None:
    packages = store.top / "packages"
    (packages / "uv/x").mkdir(parents=True)
    (packages / "uv/x/wheel").write_bytes(bytes(9000))
    os.link(packages / "uv/x/wheel", packages / "uv/x/again")
    fill("a")
    with store.leases.building():
        store.leases.use("packages")
        freed = store.make_room(0)
        assert [thing.kind for thing in freed.things] == ["images"]
        assert freed.left == 9000
    store.leases.close()
    assert [thing.kind for thing in store.make_room(0).things] == ["packages"]
    assert not packages.exists()


def test_damaged_images_that_were_kept_go_first(store, fill) -> None:
    images = fill("a", "c")
    assert store.quarantine(images["c"])
    freed = store.make_room(total(store) - 1)
    assert [thing.kind for thing in freed.things] == ["quarantine"]


def test_an_entry_that_leads_to_another_image_by_now_is_kept(
    store, sif, manifest, fill
):
    old = fill("a")["a"]
    sif.write_bytes(SIF + b"made anew")
    new = store.publish(sif, manifest("a"))
    store.leases.close()
    os.utime(old.path.parent, (1, 1))
    freed = store.make_room(total(store) - 1)
    assert [thing.path for thing in freed.things] == [old.path.parent]
    assert store.lookup(spec("a")) == new


def test_one_makes_room_at_a_time(store, root, fill) -> None:
    fill("a")
    other = Store(root, platform="linux/amd64")
    said = []

    def forget(*_: object) -> None:
        with pytest.raises(StoreError) as caught:
            other.make_room(0)
        said.append(caught.value.code)

    store._forget = forget
    store.make_room(0)
    assert said == ["lock-timeout"]


def test_what_cannot_be_moved_is_passed_over(store, fill, monkeypatch) -> None:
    images = fill("a", "c")
    first = images["a"].path.parent
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path == first:
            raise PermissionError(13, "no", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    freed = store.make_room(0)
    assert [thing.path for thing in freed.things] == [images["c"].path.parent]


def test_odd_files_in_the_cache_disturb_nothing(store, fill) -> None:
    fill("a")
    (store.top / "images/sha256/file").write_text("x")
    (store.top / "images/sha256/aa").mkdir(exist_ok=True)
    (store.top / "images/sha256/aa/dangling").symlink_to("/nowhere")
    (store.top / "quarantine").write_text("x")
    assert len(store.make_room(0).things) == 1


def test_an_empty_cache_has_nothing(tmp_path: Path) -> None:
    top = tmp_path / "none"
    assert Room(top, Leases(top)).make(0) == room.Freed(0, (), 0)
    assert not top.exists()
