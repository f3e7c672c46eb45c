"""OCI images in files of this machine: layouts and archives of them.

Runs in the endpoint process. Offers what :class:`.registry.Registry` offers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.bases.registry import Resolved, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from globus_compute_apptainer.build.bases.registry import Name
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

_REF: Final = "org.opencontainers.image.ref.name"
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")
_MEMBER: Final = re.compile(
    r"(\./)?(index\.json|oci-layout|blobs/sha256/[0-9a-f]{64})\Z"
)
_MAX_JSON_BYTES: Final = 4 * 1024**2
_PIECE_BYTES: Final = 1024**2


class Layout:
    """An OCI layout: a directory with ``index.json`` and blobs."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder

    def resolve(self, tag: str, machine: str) -> Resolved:
        """The image that a tag means; without one, there must be only one image.

        :raises BuildError: there is none (``base-not-found``), or it is damaged
            (``digest-mismatch``)
        """
        try:
            index = json.loads((self._folder / "index.json").read_text("utf-8"))
            rows = [row for row in index["manifests"] if isinstance(row, dict)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._none(f"not an OCI layout ({type(error).__name__})") from error
        if tag:
            rows = [r for r in rows if _annotations(r).get(_REF) == tag]
        if not rows:
            raise self._none(f"no image is tagged {tag!r}" if tag else "it is empty")
        if len(rows) > 1 and not all("platform" in row for row in rows):
            tags = ", ".join(str(_annotations(row).get(_REF)) for row in rows[:10])
            raise self._none(f"it holds several images ({tags}): name one by :TAG")
        if len(rows) == 1:
            top = str(rows[0].get("digest"))
        else:
            top = choose(self._job, {"manifests": rows}, machine)
        manifest = self._manifest(top)
        if "manifests" not in manifest:
            return Resolved(top, None, manifest)
        inner = choose(self._job, manifest, machine)
        return Resolved(inner, top, self._manifest(inner))

    def blob(
        self,
        name: Name,  # noqa: ARG002 - as a registry's
        digest: str,
        target: Path,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        """Copy a blob.

        :raises BuildError: as :meth:`resolve`
        """
        sha = hashlib.sha256()
        try:
            with self._path(digest).open("rb") as reader, target.open("wb") as writer:
                while piece := reader.read(_PIECE_BYTES):
                    check()
                    sha.update(piece)
                    writer.write(piece)
                    on_bytes(len(piece))
        except FileNotFoundError as error:
            raise self._none(f"the blob {digest} is missing") from error
        self._check(digest, sha.hexdigest())

    def json_blob(self, name: Name | None, digest: str) -> bytes:  # noqa: ARG002
        """A small blob."""
        try:
            with self._path(digest).open("rb") as file:
                data = file.read(_MAX_JSON_BYTES + 1)
        except OSError as error:
            raise self._none(f"the blob {digest} cannot be read") from error
        self._check(digest, hashlib.sha256(data).hexdigest())
        return data

    def single(self, found: Resolved, name: Name, target: Path) -> None:
        """Write a layout with nothing but one image, for Apptainer to read."""
        blobs = target / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        rows = [found.manifest["config"], *found.manifest["layers"]]
        for digest in {found.digest, *(str(row["digest"]) for row in rows)}:
            copy = blobs / digest.partition(":")[2]
            self.blob(name, digest, copy, self._job.check, lambda _: None)
        size = (blobs / found.digest.partition(":")[2]).stat().st_size
        kind = found.manifest.get("mediaType")
        kind = kind or "application/vnd.oci.image.manifest.v1+json"
        row = {"mediaType": kind, "digest": found.digest, "size": size}
        index = json.dumps({"schemaVersion": 2, "manifests": [row]})
        (target / "index.json").write_text(index, encoding="utf-8")
        version = json.dumps({"imageLayoutVersion": "1.0.0"})
        (target / "oci-layout").write_text(version, encoding="utf-8")

    def _manifest(self, digest: str) -> Mapping[str, Any]:
        manifest = None
        with contextlib.suppress(ValueError):
            manifest = json.loads(self.json_blob(None, digest))
        if not isinstance(manifest, dict):
            raise self._none("its manifest is damaged")
        return manifest

    def _path(self, digest: str) -> Path:
        found = _DIGEST.match(digest)
        if found is None:
            raise self._none(f"{digest!r:.80} is not a digest")
        return self._folder / "blobs" / "sha256" / found[1]

    def _check(self, digest: str, found: str) -> None:
        if digest != f"sha256:{found}":
            raise self._job.error(
                f"the OCI layout is damaged: a blob is not what {digest} says",
                code="digest-mismatch",
                hint="write it again",
            )

    def _none(self, why: str) -> BuildError:
        return self._job.error(
            f"there is no such base image: {why}",
            code="base-not-found",
            hint="check the path and the tag of `base_image`",
        )


def unpacked(job: Job, archive: Path, target: Path) -> Layout:
    """The layout in an archive.

    :raises BuildError: it is not an archive (``base-not-found``)
    """
    (target / "blobs" / "sha256").mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                job.check()
                found = _MEMBER.match(member.name)
                source = tar.extractfile(member) if member.isfile() else None
                if found and source:
                    with source, (target / found[2]).open("wb") as file:
                        shutil.copyfileobj(source, file, _PIECE_BYTES)
    except tarfile.TarError as error:
        raise job.error(
            f"that is not an archive of an OCI image: {error}",
            code="base-not-found",
            hint="check `base_image` and its scheme",
        ) from error
    return Layout(job, target)


def _annotations(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("annotations")
    return found if isinstance(found, dict) else {}
