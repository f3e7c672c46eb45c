"""An image of a registry made into a SIF, without unpacking it.

Runs in the endpoint process. Layers are fetched side by side, merged as a stream
(:mod:`.rootfs`) and packed by one ``mksquashfs`` while they are read; what Apptainer
would add comes from :mod:`.skeleton`. Several times as fast as ``apptainer pull``,
which unpacks to disk and packs with gzip, and it needs no user namespace.
"""

from __future__ import annotations

import io
import os
import queue
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.apptainer import SIF_ARCHITECTURES
from globus_compute_apptainer.build.bases import skeleton
from globus_compute_apptainer.build.bases.rootfs import Merge
from globus_compute_apptainer.build.bases.tarstream import TarError
from globus_compute_apptainer.build.process import Completed, run

if TYPE_CHECKING:
    from globus_compute_apptainer.build.bases.registry import Name, Resolved
    from globus_compute_apptainer.build.job import Job

READS_ARCHIVES: Final = (4, 5)
"""The first mksquashfs that packs what it reads."""

AT_ONCE: Final = 4
"""Layers that are fetched at the same time."""

PIECE_BYTES: Final = 1024**2
AHEAD: Final = 8
"""Pieces that are decompressed before they are needed."""

_CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_GZIP: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
)
_PLAIN: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
    }
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_KINDS: Final = {sif.DEFINITION: "1", sif.JSON: "6"}


class Source(Protocol):
    """Where an image's blobs are: a registry, or a layout on disk."""

    def blob(
        self,
        name: Name,
        digest: str,
        target: Path,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None: ...

    def json_blob(self, name: Name, digest: str) -> bytes: ...


def attempt(
    job: Job, source: Source, name: Name, found: Resolved, target: Path
) -> bool:
    """Make ``target``, a SIF of the image, if that can be done here.

    :returns: whether it was; else Apptainer itself must do it
    :raises BuildError: a blob cannot be had, or packing fails
    """
    if not can_pull(found.manifest):
        job.transcript.note("Apptainer itself has to unpack this image")
        return False
    try:
        _pull(job, source, name, found, target)
    except TarError as error:
        job.transcript.note(f"Apptainer itself has to unpack this image: {error}")
        target.unlink(missing_ok=True)
        return False
    return True


def can_pull(manifest: Mapping[str, Any]) -> bool:
    """Whether this module understands the image, with the tools that are here."""
    layers = manifest.get("layers")
    return (
        squashfs.has_zstd()
        and (squashfs.version() or (0, 0)) >= READS_ARCHIVES
        and squashfs.find("unsquashfs") is not None
        and isinstance(layers, list)
        and isinstance(manifest.get("config"), dict)
        and manifest["config"].get("mediaType") in _CONFIGS
        and all(isinstance(one, dict) for one in layers)
        and all(one.get("mediaType") in _GZIP | _PLAIN for one in layers)
        and all(_DIGEST.match(str(one.get("digest"))) for one in layers)
        and _DIGEST.match(str(manifest["config"].get("digest"))) is not None
    )


def _pull(job: Job, source: Source, name: Name, found: Resolved, target: Path) -> None:
    """:raises TarError: layers that only Apptainer itself can unpack"""
    place = job.scratch / "pull"
    place.mkdir()
    blobs = _Blobs(job, source, name, found.manifest["layers"], place)
    try:
        with closing(blobs):
            config = source.json_blob(name, found.manifest["config"]["digest"])
            try:
                bones = skeleton.skeleton(job, config, name.at(found.digest))
            except ValueError as error:
                raise TarError(str(error)) from error
            _begin_sif(job, bones, place, target)
            packed = place / "rootfs.sqfs"
            _pack(job, bones, blobs, packed)
        _add(job, target, packed, "rootfs.sqfs", _partition(job))
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Blobs:
    """The image's layers, being fetched."""

    def __init__(
        self,
        job: Job,
        source: Source,
        name: Name,
        layers: Sequence[Mapping[str, Any]],
        place: Path,
    ) -> None:
        self._job, self._layers = job, layers
        self._got, self._lock = 0, threading.Lock()
        self._total = sum(int(layer.get("size", 0)) for layer in layers)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch-layer")
        self._files: dict[str, Future[Path]] = {}
        for layer in reversed(layers):  # in the order in which they are needed
            digest = layer["digest"]
            if digest not in self._files:
                target = place / digest.partition(":")[2]
                self._files[digest] = self._pool.submit(
                    self._fetch, source, name, digest, target
                )

    def _fetch(self, source: Source, name: Name, digest: str, target: Path) -> Path:
        source.blob(name, digest, target, self._check, self._count)
        return target

    def _check(self) -> None:
        if self._stop.is_set():
            raise self._job.cancelled()
        self._job.check()

    def _count(self, size: int) -> None:
        with self._lock:
            self._got += size

    def report(self) -> None:
        """Tell how much has come."""
        self._job.transcript.progress(self._got, self._total, "bytes", "layers")

    def layers(self) -> Iterator[Iterator[bytes]]:
        """The archives, the uppermost first, each as soon as it is here."""
        for layer in reversed(self._layers):
            future = self._files[layer["digest"]]
            while True:
                self.report()
                try:
                    path = future.result(timeout=0.2)
                    break
                except TimeoutError:
                    self._job.check()
            yield _ahead(_decompressed(path, gzip=layer["mediaType"] in _GZIP))
        self.report()

    def close(self) -> None:
        # Not waited for: a server that hangs is given up on by its own time limit.
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _decompressed(path: Path, *, gzip: bool) -> Iterator[bytes]:
    """:raises TarError: it is damaged"""
    with path.open("rb") as file:
        if not gzip:
            while piece := file.read(PIECE_BYTES):
                yield piece
            return
        inflate, data, begun = zlib.decompressobj(wbits=31), b"", False
        try:
            while data := data or file.read(PIECE_BYTES // 4):
                piece = inflate.decompress(data, PIECE_BYTES)
                data, begun = inflate.unconsumed_tail, True
                if piece:
                    yield piece
                if inflate.eof:  # another one may follow; zeros may too
                    data, begun = inflate.unused_data.lstrip(b"\0"), False
                    inflate = zlib.decompressobj(wbits=31)
        except zlib.error as error:
            raise TarError(f"a damaged layer: {error}") from error
        if begun:
            raise TarError("a damaged layer: it ends too early")


def _ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, made in another thread, some before they are needed."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item: bytes | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for piece in pieces:
                if not put(piece):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised by who reads
            put(error)

    thread = threading.Thread(target=work, name="inflate-layer", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _pack(job: Job, bones: skeleton.Skeleton, blobs: _Blobs, target: Path) -> None:
    """Write the merged archive into ``mksquashfs``.

    :raises TarError: see :mod:`.rootfs`
    """
    job.transcript.begin("mksquashfs")
    own = [one for one in bones.files if one[0].startswith(skeleton.OWN)]
    rest = [one for one in bones.files if not one[0].startswith(skeleton.OWN)]
    with _Squash(job, target) as squash:
        merge = Merge(squash.write)
        for name, archive, directory in own:
            merge.add(name, archive, directory=directory)
        for layer in blobs.layers():
            merge.layer(layer)
        for name, archive, directory in rest:
            merge.add(name, archive, directory=directory)
        merge.end()


class _Squash:
    """A running ``mksquashfs``, fed by :meth:`write`; leaving waits for its end."""

    def __init__(self, job: Job, target: Path) -> None:
        self._job = job
        self._argv = [squashfs.program(), "-", str(target), "-tar"]
        self._argv += squashfs.options()
        self._argv += ["-root-mode", "755", "-no-xattrs"]
        self._stop = threading.Event()
        self._lines: list[str] = []
        self._ended: Completed | OSError | None = None
        self._output, inlet = os.pipe()
        self._inlet = io.BufferedWriter(io.FileIO(inlet, "wb"), PIECE_BYTES)
        self._thread = threading.Thread(target=self._run, name="mksquashfs")

    def _run(self) -> None:
        try:
            self._ended = run(
                self._argv,
                env=self._job.apptainer.environment(),
                timeout=self._job.left(),
                on_line=self._lines.append,
                cancel=self._stop,
                stdin=self._output,
            )
        except OSError as error:
            self._ended = error
        finally:
            os.close(self._output)  # from here on, writing fails

    def write(self, data: bytes | memoryview) -> None:
        self._job.check()
        self._inlet.write(data)

    def __enter__(self) -> _Squash:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        broken = isinstance(error, BrokenPipeError)
        if error is not None and not broken:
            self._stop.set()
        try:
            self._inlet.close()
        except BrokenPipeError:
            broken = True
        self._thread.join()
        for line in self._lines:
            self._job.transcript.line(line)
        if error is not None and not broken:
            return
        self._job.check()
        if isinstance(self._ended, OSError):
            raise self._ended
        if broken or self._ended is None or not self._ended.ok:
            raise self._job.failed()


def _begin_sif(job: Job, bones: skeleton.Skeleton, place: Path, target: Path) -> None:
    """A SIF with everything but the file system."""
    argv = [job.apptainer.path, "sif", "new", str(target)]
    job.run(argv, env=job.apptainer.environment(), shown="apptainer sif new")
    for kind, name, content in bones.objects:
        part = place / "object"
        part.write_bytes(content)
        _add(job, target, part, name, ["--datatype", _KINDS[kind]])


def _add(job: Job, target: Path, part: Path, name: str, kind: Sequence[str]) -> None:
    argv = [job.apptainer.path, "sif", "add", *kind, "--groupid", "1"]
    argv += ["--filename", name, str(target), str(part)]
    job.run(argv, env=job.apptainer.environment(), shown="apptainer sif add")


def _partition(job: Job) -> list[str]:
    architecture = str(SIF_ARCHITECTURES.get(job.machine, 0))
    system = ["--datatype", "4", "--parttype", "2", "--partfs", "1"]
    return [*system, "--partarch", architecture]
