"""What Apptainer adds to an OCI image to make it its own.

Runs in the endpoint process. Environment, entry point, labels and the scripts that
start containers come from Apptainer itself, of the version that is here: it builds an
image with the real configuration and no files, in a twentieth of a second, and what
it put in is taken over.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import sif, squashfs
from globus_compute_apptainer.build.bases.sources import plain_flags, with_cache
from globus_compute_apptainer.build.scratch import remove_tree
from globus_compute_apptainer.build.system import flat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from globus_compute_apptainer.build.job import Job

APPTAINERS_OWN: Final = ".singularity.d"
OWN: Final = APPTAINERS_OWN.encode()

_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_FROM: Final = "org.label-schema.usage.singularity.deffile.from"
_BOOTSTRAP: Final = "org.label-schema.usage.singularity.deffile.bootstrap"


@dataclass(frozen=True)
class Skeleton:
    """An image without the image.

    :param files: ``(name, entry of a tar archive, whether a directory)``; those of
        Apptainer's own directory first
    :param objects: of the SIF: ``(kind as in :mod:`.sif`, name, content)``
    """

    files: tuple[tuple[bytes, bytes, bool], ...]
    objects: tuple[tuple[int, str, bytes], ...]


def skeleton(job: Job, config: bytes, source: str) -> Skeleton:
    """Have Apptainer make it.

    :param config: of the OCI image, as the registry has it
    :param source: what the image is said to be made from, ``HOST/NAME@DIGEST``
    :raises BuildError: Apptainer fails
    :raises ValueError: ``config`` is not an image's configuration
    """
    place = job.scratch / "skeleton"
    place.mkdir()
    try:
        _write_layout(place / "oci", json.loads(config))
        made, tree = place / "made.sif", place / "tree"
        argv = [job.apptainer.path, "build", *plain_flags(job), "--disable-cache"]
        argv += [*flat.packing(job.apptainer), str(made), f"oci:{place / 'oci'}"]
        with_cache(job, argv, "apptainer build (the image's configuration)")
        found = sif.parts(made)
        image = tree.with_suffix(".sqfs")
        image.write_bytes(sif.content(made, sif.system(found)))
        unsquashfs = squashfs.find("unsquashfs") or "unsquashfs"
        unpack = [unsquashfs, "-no-progress", "-no-xattrs", "-d", str(tree)]
        env = job.apptainer.environment()
        job.run([*unpack, str(image)], env=env, shown="unsquashfs")
        fix = _Fix(f"{place / 'oci'}", source)
        _correct_labels(tree, fix)
        objects = tuple(
            (part.kind, part.name, fix.text(sif.content(made, part)))
            for part in found
            if part.kind in {sif.DEFINITION, sif.JSON}
        )
        return Skeleton(tuple(_entries(tree)), objects)
    finally:
        remove_tree(place)


@dataclass(frozen=True)
class _Fix:
    """Puts the true source where Apptainer names the temporary one."""

    place: str
    source: str

    def text(self, data: bytes) -> bytes:
        try:
            told = json.loads(data)
        except ValueError:
            return self.definition(data)
        attributes = told.get("data", {}).get("attributes", {})
        self.labels(attributes.get("labels", {}))
        if "deffile" in attributes:
            old = str(attributes["deffile"]).encode()
            attributes["deffile"] = self.definition(old).decode()
        return json.dumps(told, separators=(",", ":")).encode()

    def definition(self, data: bytes) -> bytes:
        data = data.replace(self.place.encode(), self.source.encode())
        return data.replace(b"bootstrap: oci\n", b"bootstrap: docker\n")

    def labels(self, labels: dict[str, Any]) -> None:
        if labels.get(_FROM) == self.place:
            labels |= {_FROM: self.source, _BOOTSTRAP: "docker"}


def _correct_labels(tree: Path, fix: _Fix) -> None:
    path = tree / APPTAINERS_OWN / "labels.json"
    if path.exists():
        labels = json.loads(path.read_bytes())
        fix.labels(labels)
        text = json.dumps(labels, indent="\t", ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
    path = tree / APPTAINERS_OWN / "Singularity"
    if path.exists():
        path.write_bytes(fix.definition(path.read_bytes()))


def _write_layout(folder: Path, config: Mapping[str, Any]) -> None:
    """An OCI layout with one empty layer."""
    nothing = b"\0" * 10240
    told = {key: value for key, value in config.items() if key != "history"}
    told["rootfs"] = {"type": "layers", "diff_ids": [_digest(nothing)]}
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(kind: str, data: bytes) -> dict[str, Any]:
        digest = _digest(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": put(_CONFIG, json.dumps(told).encode()),
        "layers": [put(_LAYER, gzip.compress(nothing, mtime=0))],
    }
    named = put(_MANIFEST, json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [named]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    version = json.dumps({"imageLayoutVersion": "1.0.0"})
    (folder / "oci-layout").write_text(version, encoding="utf-8")


def _entries(tree: Path) -> Iterator[tuple[bytes, bytes, bool]]:
    paths = sorted(tree.rglob("*"))
    own = tree / APPTAINERS_OWN
    for path in sorted(paths, key=lambda one: not one.is_relative_to(own)):
        name = str(path.relative_to(tree))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            entry = tar.gettarinfo(path, arcname=name)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
            length = buffer.tell()
        yield name.encode(), buffer.getvalue()[:length], entry.isdir()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
