"""The store: whole or absent, for one process and for several."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from globus_compute_apptainer.errors import StoreError
from globus_compute_apptainer.store import cache, index
from globus_compute_apptainer.store.cache import Store

SIF = b"\0" * index.SIF_MAGIC_AT + index.SIF_MAGIC
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
root_only = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def tree(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_making_a_store_touches_nothing(root: Path):
    Store(root)
    assert not root.exists()


def test_nothing_is_found_where_nothing_is(store: Store):
    assert store.lookup(A) is None
    assert list(store.images()) == []
    assert store.make_room(0).things == ()


def test_published_is_found_with_digest_and_size(store, root, sif, manifest):
    stored = store.publish(sif, manifest("a"))
    digest = hashlib.sha256(sif.read_bytes()).hexdigest()
    assert stored.path.read_bytes() == sif.read_bytes()
    assert stored.manifest.image_digest == f"sha256:{digest}"
    assert stored.manifest.size == sif.stat().st_size
    for found in (store.lookup(A), Store(root, platform="linux/amd64").lookup(A)):
        assert found == stored
    assert sif.exists()


def test_the_tree_is_as_drawn(store, root, sif, manifest):
    store.prepare()
    store.publish(sif, manifest("a"))
    store.leases.close()
    digest = hashlib.sha256(sif.read_bytes()).hexdigest()
    image = f"v2/images/sha256/{digest[:2]}/{digest}"
    assert tree(root) == {
        "CACHEDIR.TAG",
        f"{image}/image.sif",
        f"{image}/manifest.json",
        f"v2/index/linux-amd64/aa/{'a' * 64}.json",
    }
    tag = (root / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_publishing_again_is_fine(store, root, sif, manifest):
    first = store.publish(sif, manifest("a"))
    before = tree(root)
    assert store.publish(sif, manifest("a")) == first
    assert tree(root) == before


def test_two_specs_may_share_an_image(store, sif, manifest):
    one = store.publish(sif, manifest("a"))
    two = store.publish(sif, manifest("b"))
    assert one.path == two.path
    assert store.lookup(B).manifest.spec_digest == B
    assert [image.manifest.spec_digest for image in store.images()] == [A, B]


def test_architectures_are_apart(root, sif, manifest):
    Store(root, platform="linux/amd64").publish(sif, manifest("a"))
    assert Store(root, platform="linux/arm64").lookup(A) is None


def test_a_truncated_image_counts_as_absent_and_is_replaced(store, root, sif, manifest):
    stored = store.publish(sif, manifest("a"))
    os.truncate(stored.path, 100)
    fresh = Store(root, platform="linux/amd64")
    assert store.lookup(A) is None
    assert fresh.lookup(A) is None
    assert list(fresh.images()) == []
    again = fresh.publish(sif, manifest("a"))
    assert again.path.read_bytes() == sif.read_bytes()
    assert store.lookup(A) == again


def test_a_truncated_image_goes_when_another_takes_its_place(store, sif, manifest):
    stored = store.publish(sif, manifest("a"))
    os.truncate(stored.path, 100)
    sif.write_bytes(SIF + b"built anew")
    again = store.publish(sif, manifest("a"))
    assert again.path != stored.path
    assert not stored.path.parent.exists()


def test_a_deleted_image_counts_as_absent(store, sif, manifest):
    store.publish(sif, manifest("a")).path.unlink()
    assert store.lookup(A) is None
    assert store.publish(sif, manifest("a")).path.exists()


def test_an_image_of_the_right_size_and_other_content_is_replaced(store, sif, manifest):
    path = store.publish(sif, manifest("a")).path
    path.write_bytes(b"x" * sif.stat().st_size)
    store.publish(sif, manifest("a"))
    assert path.read_bytes() == sif.read_bytes()


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}', "\xff"])
def test_an_entry_that_is_no_manifest_counts_as_absent(
    store, root, sif, manifest, text
):
    store.publish(sif, manifest("a"))
    entry = root / f"v2/index/linux-amd64/aa/{'a' * 64}.json"
    entry.write_text(text, encoding="latin-1")
    assert store.lookup(A) is None
    assert store.publish(sif, manifest("a")) == store.lookup(A)


def test_another_process_that_replaces_an_image_is_noticed(store, root, sif, manifest):
    store.publish(sif, manifest("a"))
    sif.write_bytes(SIF + b"newer")
    newer = Store(root, platform="linux/amd64").publish(sif, manifest("a"))
    assert store.lookup(A) == newer


def test_lookup_is_cheap_when_known(store, sif, manifest, monkeypatch):
    store.publish(sif, manifest("a"))
    store.lookup(A)
    monkeypatch.setattr(store._index, "read", None)  # neither file is read again
    monkeypatch.setattr(index, "is_sif", None)
    assert store.lookup(A) is not None


@pytest.mark.parametrize("digest", ["", "a", "sha256:../../x", A + "0", A[:-1] + "\n"])
def test_no_digest_is_refused(store, digest):
    with pytest.raises(StoreError) as caught:
        store.lookup(digest)
    assert caught.value.code == "digest-invalid"


def test_log_paths_are_fresh_and_ready(store):
    one, two = store.log_path(A), store.log_path(A)
    assert one != two
    assert one.read_text() == two.read_text() == ""


def test_prepare_may_be_called_always(store, root):
    store.prepare()
    store.prepare()
    assert tree(root) == {"CACHEDIR.TAG"}


def test_prepare_sweeps_old_litter_only(store, root):
    store.prepare()
    old, new = root / "v2/tmp/image.1.x", root / "v2/tmp/image.2.x"
    for path in (old, new):
        path.mkdir()
        (path / "image.sif").write_text("x")
    os.utime(old, (1, 1))
    store.prepare()
    assert not old.exists()
    assert new.exists()


def test_what_a_killed_writer_left_is_gone_with_the_next_start(store, root):
    program = (
        "import os, pathlib, sys\n"
        "from globus_compute_apptainer.store.cache import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).workspace() as work:\n"
        "    (work / 'image.sif').write_text('half of an image')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(root)], env=env)
    assert [path.name for path in (root / "v2/tmp").glob("*/*")] == ["image.sif"]
    store.prepare()
    assert list((root / "v2/tmp").iterdir()) == []


def test_no_room_is_told_before_anything_is_built(store, monkeypatch):
    monkeypatch.setattr(cache, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(StoreError) as caught:
        store.prepare()
    assert caught.value.code == "disk-full"


def test_a_file_in_its_place_is_unusable(tmp_path, sif, manifest):
    (tmp_path / "file").write_text("x")
    store = Store(tmp_path / "file")
    assert store.lookup(A) is None
    for call in (store.prepare, lambda: store.publish(sif, manifest("a"))):
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.code == "cache-unusable"


@root_only
def test_a_read_only_store_can_be_read(store, root, sif, manifest):
    stored = store.publish(sif, manifest("a"))
    store.prepare()
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        folder.chmod(0o555)
    try:
        fresh = Store(root, platform="linux/amd64")
        assert fresh.lookup(A) == stored
        with pytest.raises(StoreError) as caught:
            fresh.prepare()
        assert caught.value.code == "cache-unusable"
        assert caught.value.hint
    finally:
        for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
            folder.chmod(0o755)


@root_only
def test_what_may_not_be_read_is_an_error_not_a_miss(store, root, sif, manifest):
    store.publish(sif, manifest("a"))
    (root / "v2/index").chmod(0)
    try:
        with pytest.raises(StoreError) as caught:
            Store(root, platform="linux/amd64").lookup(A)
        assert caught.value.code == "cache-unusable"
    finally:
        (root / "v2/index").chmod(0o755)


def test_a_missing_image_is_an_error_and_leaves_nothing(
    store, root, tmp_path, manifest
):
    with pytest.raises(StoreError):
        store.publish(tmp_path / "none.sif", manifest("a"))
    assert tree(root) == set()
    assert list((root / "v2/tmp").iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [("002", 0o775), ("077", 0o700)])
def test_modes_follow_the_umask(root, umask, mode):
    program = (
        "import sys; from pathlib import Path\n"
        "from globus_compute_apptainer.store.cache import Store\n"
        "Store(Path(sys.argv[1])).prepare()\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shell = f'umask {umask}; exec "$0" -c "$1" "$2"'
    argv = ["/bin/sh", "-c", shell, sys.executable, program, str(root)]
    subprocess.run(argv, env=env, check=True)
    for folder in (root, root / "v2/images/sha256", root / "v2/tmp", root / "v2/locks"):
        assert folder.stat().st_mode & 0o777 == mode


def test_processes_that_publish_at_once_all_succeed(root, sif, manifest):
    sif.write_bytes(SIF + os.urandom(8 * 1024**2))
    program = """\
import sys
from pathlib import Path
from globus_compute_apptainer.store.cache import Store
from globus_compute_apptainer.store.manifest import Manifest
manifest = Manifest.from_json(sys.stdin.read())
store = Store(Path(sys.argv[1]), platform="linux/amd64")
for _ in range(3):
    stored = store.publish(Path(sys.argv[2]), manifest)
    assert store.lookup(manifest.spec_digest) == stored
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", program, str(root), str(sif)]
    running = [
        subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in running:
        assert process.stdin
        process.stdin.write(manifest("a").to_json())
        process.stdin.close()
    assert [process.wait(120) for process in running] == [0] * 4
    images = [name for name in tree(root) if name.endswith("image.sif")]
    assert len(images) == 1
    assert list((root / "v2/tmp").iterdir()) == []


def test_a_cancelled_publication_leaves_nothing(store, root, sif, manifest):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(StoreError) as caught:
        store.publish(sif, manifest("a"), cancel=cancel)
    assert caught.value.code == "build-cancelled"
    assert tree(root) == set()
    assert list((root / "v2/tmp").iterdir()) == []
    assert store.publish(sif, manifest("a"), cancel=threading.Event())
