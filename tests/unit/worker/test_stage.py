"""Copies of images on a node: whole, once, within bounds, and never in the way."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from globus_compute_apptainer.pieces import Hasher
from globus_compute_apptainer.store import integrity
from globus_compute_apptainer.store.index import BYTECODE
from globus_compute_apptainer.worker import stage
from globus_compute_apptainer.worker.stage import Folder, staged

MB = 1_000_000


@pytest.fixture
def image(tmp_path: Path):
    """``image(name, size)``: a file, and what the store says of it."""

    def make(name: str, size: int = MB) -> tuple[Path, int, str]:
        path = tmp_path / name
        path.write_bytes(os.urandom(size))
        return path, size, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()

    return make


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "local"


@pytest.fixture
def ordered(order, image, base):
    """``ordered(name)``: an order whose image is to be copied."""

    def make(name: str = "image.sif", size: int = MB, **changes):
        path, size, digest = image(name, size)
        return dataclasses.replace(
            order,
            image=str(path),
            size=size,
            image_digest=digest,
            **{"stage_to": str(base), "stage_size": 10 * MB, **changes},
        )

    return make


def wanted(order) -> stage.Wanted:
    return stage.Wanted(order.size, order.image_digest, order.pieces)


def copies(base: Path) -> list[Path]:
    return sorted(base.glob("*/*.sif"))


def test_an_image_of_several_pieces_is_copied_and_checked(ordered, base):
    order = ordered()
    content = Path(order.image).read_bytes()
    hasher = Hasher([1000, MB // 2])
    hasher.update(content)
    order = dataclasses.replace(order, pieces=(1000, MB // 2, MB // 2 - 1000))
    assert staged(order) == (order, ())  # its digest is another one
    assert copies(base) == []
    order = dataclasses.replace(order, image_digest=f"sha256:{hasher.name}")
    here, held = staged(order)
    assert Path(here.image).read_bytes() == content
    release(held)


def release(descriptors) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_copy_is_used_and_made_once(ordered, base):
    order = ordered()
    here, held = staged(order)
    again, more = staged(order)
    assert here == again and [Path(here.image)] == copies(base)
    assert Path(here.image).read_bytes() == Path(order.image).read_bytes()
    assert dataclasses.replace(here, image=order.image) == order
    assert len(held) == len(more) == 1
    release(held + more)


@pytest.fixture
def with_bytecode(ordered, tmp_path):
    """``with_bytecode(**changes)``: an order with a layer of compiled Python."""

    def make(**changes):
        layer = tmp_path / "bytecode.sqfs"
        layer.write_bytes(os.urandom(1000))
        digest = hashlib.sha256(layer.read_bytes()).hexdigest()
        layer.with_suffix(".sha256").write_text(digest)
        return ordered(bytecode=str(layer), **changes)

    return make


def test_the_digest_of_the_layer_is_where_the_store_puts_it() -> None:
    assert Path(BYTECODE).with_suffix(".sha256").name == integrity.BYTECODE_DIGEST


def test_the_layer_of_bytecode_is_copied_too(with_bytecode, base):
    order = with_bytecode()
    here, held = staged(order)
    assert Path(here.bytecode).parent == Path(here.image).parent
    assert Path(here.bytecode).read_bytes() == Path(order.bytecode).read_bytes()
    again, more = staged(order)
    assert again == here and len(held) == len(more) == 2
    release(held + more)


@pytest.mark.parametrize("trouble", ["damaged", "no digest"])
def test_a_layer_that_cannot_be_copied_is_used_where_it_is(
    with_bytecode, base, trouble
):
    order = with_bytecode()
    layer = Path(order.bytecode)
    if trouble == "damaged":
        layer.write_bytes(bytes(1000))
    else:
        layer.with_suffix(".sha256").unlink()
    here, held = staged(order)
    assert (here.bytecode, [Path(here.image)]) == (order.bytecode, copies(base))
    release(held)


def test_layers_count_and_go_as_images_do(with_bytecode, ordered, base):
    here, held = staged(with_bytecode(stage_size=MB + 1000))
    release(held)
    _, more = staged(ordered("other", MB + 1, stage_size=MB + 1000))
    assert not Path(here.bytecode).exists() and not Path(here.image).exists()
    release(more)


def test_nothing_is_copied_unless_asked(order):
    assert staged(order) == (order, ())


def test_variables_of_the_node(ordered, base, monkeypatch):
    monkeypatch.setenv("LOCAL_DISK", str(base))
    here, held = staged(ordered(stage_to="$LOCAL_DISK/deeper"))
    assert Path(here.image).parents[1] == base / "deeper"
    release(held)


@pytest.mark.parametrize("trouble", ["variable", "file", "open to others", "too large"])
def test_where_no_copy_can_be_made_the_image_is_used(ordered, base, caplog, trouble):
    changes = {}
    if trouble == "variable":
        changes["stage_to"] = "$NO_SUCH_VARIABLE_ANYWHERE"
    elif trouble == "file":
        base.write_text("not a folder")
    elif trouble == "open to others":
        (base / f"gc-images-{os.geteuid()}").mkdir(parents=True)
        (base / f"gc-images-{os.geteuid()}").chmod(0o777)
    else:
        changes["stage_size"] = MB - 1
    order = ordered(**changes)
    with caplog.at_level(logging.WARNING):
        assert staged(order) == (order, ())
    assert "is used from where it is" in caplog.text


def test_a_damaged_image_is_not_copied(ordered, base, caplog):
    order = ordered()
    with open(order.image, "r+b") as file:
        file.write(b"damage")
    assert staged(order) == (order, ())
    assert "not the image that was published" in caplog.text
    assert not [*base.glob("*/*.sif"), *base.glob("*/part-*")]


def test_a_truncated_copy_is_made_anew(ordered):
    order = ordered()
    here, held = staged(order)
    release(held)
    os.truncate(here.image, 10)
    here, held = staged(order)
    assert Path(here.image).read_bytes() == Path(order.image).read_bytes()
    release(held)


def test_the_least_recently_used_makes_room(ordered, base):
    a, b, c = (ordered(name, stage_size=2 * MB) for name in "abc")
    for order in (a, b, a):
        here, held = staged(order)
        release(held)
        then = time.time() + len(copies(base))
        os.utime(here.image, (then, then))
    first, held = staged(a)
    release(held)
    os.utime(first.image, (time.time() + 100,) * 2)
    third, held = staged(c)
    release(held)
    assert set(copies(base)) == {Path(first.image), Path(third.image)}


def test_what_is_in_use_stays(ordered, base, caplog):
    a, b = (ordered(name, stage_size=MB) for name in "ab")
    here, held = staged(a)
    assert staged(b) == (b, ())
    assert "full of images in use" in caplog.text
    assert copies(base) == [Path(here.image)]
    release(held)
    there, held = staged(b)
    assert copies(base) == [Path(there.image)]
    release(held)


def _stage(order, barrier):
    barrier.wait(60)
    folder = Folder(Path(order.stage_to), order.stage_size)
    copy = folder.copy(Path(order.image), wanted(order), 120.0)
    return copy.made, str(copy.path), os.fstat(copy.lock).st_ino


def test_of_many_processes_one_copies(ordered):
    order = ordered(size=5 * MB)
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(6) as pool:
        barrier = manager.Barrier(6)
        found = pool.starmap(_stage, [(order, barrier)] * 6)
    assert sorted(made for made, *_ in found) == [False] * 5 + [True]
    assert len({rest for _, *rest in map(tuple, found) for rest in [tuple(rest)]}) == 1


SLOW_COPY = """
import os, sys
sys.path.insert(0, {source!r})
from pathlib import Path
from globus_compute_apptainer.worker import stage
def stuck(*_):
    print("copying", flush=True)
    sys.stdin.read()
stage._pour = stuck
stage.Folder(Path({base!r}), {most}).copy(
    Path({image!r}), stage.Wanted({size}, {digest!r}), 60.0
)
"""


def test_one_that_is_killed_while_it_copies_leaves_the_way_free(ordered, base):
    order = ordered(stage_size=MB)
    program = SLOW_COPY.format(
        source=str(Path(stage.__file__).resolve().parents[2]),
        base=str(base),
        most=order.stage_size,
        image=order.image,
        size=order.size,
        digest=order.image_digest,
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as copying:
        assert copying.stdout.readline() == b"copying\n"
        assert [*base.glob("*/part-*")]
        with pytest.raises(TimeoutError):
            folder = Folder(base, order.stage_size)
            folder.copy(Path(order.image), wanted(order), 0.1)
        copying.send_signal(signal.SIGKILL)
    here, held = staged(order)
    assert Path(here.image) in copies(base)
    assert not [*base.glob("*/part-*")]
    release(held)
