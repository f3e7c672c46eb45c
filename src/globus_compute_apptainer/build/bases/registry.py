"""What a registry knows of an image: its digest, its manifest, its blobs.

Runs in the endpoint process, in the thread of a build. Speaks the API of the OCI
distribution specification, read-only.

Guaranteed: what is given out has the digest that it was asked for by, or that is
reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import requests

from globus_compute_apptainer.build.bases import credentials
from globus_compute_apptainer.build.bases.wire import ATTEMPTS, CHUNK_BYTES, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from globus_compute_apptainer.build.job import Job

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
# By what `uname -m` says.
ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
}
_PLAIN_VARIANTS: Final = (None, "", "v1", "v7", "v8")


@dataclass(frozen=True)
class Name:
    """Where an image is, and what it is called there.

    :param host: ``host[:port]`` of the API
    :param reference: a tag, or a digest
    """

    host: str
    repository: str
    reference: str

    @classmethod
    def of(cls, agent: str, written: str) -> Name:
        """Of a reference in normal form, see :func:`..spec.base.reference`."""
        path, at, reference = written.partition("@")
        if not at:
            path, _, reference = written.rpartition(":")
        first, slash, rest = path.partition("/")
        named = slash and (first == "localhost" or "." in first or ":" in first)
        if agent == "docker" and (not named or first == "docker.io"):
            inside = rest if named else path
            inside = inside if "/" in inside else f"library/{inside}"
            return cls(credentials.HUB, inside, reference)
        return cls(first, rest, reference)

    @property
    def is_digest(self) -> bool:
        return ":" in self.reference

    def at(self, digest: str) -> str:
        """The same image by digest, as Apptainer takes it (without a scheme)."""
        host = "docker.io" if self.host == credentials.HUB else self.host
        return f"{host}/{self.repository}@{digest}"


@dataclass(frozen=True)
class Resolved:
    """What a reference means now.

    :param digest: of the manifest for this machine
    :param index_digest: of the index that names it, where the reference means one
    :param manifest: as the registry has it, parsed
    """

    digest: str
    index_digest: str | None
    manifest: Mapping[str, Any]

    @property
    def top_digest(self) -> str:
        """Of what the reference itself names."""
        return self.index_digest or self.digest

    @property
    def layers(self) -> tuple[str, ...]:
        """Digests of the layers, lowest first."""
        rows = self.manifest.get("layers")
        rows = rows if isinstance(rows, list) else []
        return tuple(str(row.get("digest")) for row in rows if isinstance(row, dict))


class Registry:
    """One registry, asked on behalf of one build."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @classmethod
    @contextlib.contextmanager
    def opened(cls, job: Job, host: str, *, http: bool = False) -> Iterator[Registry]:
        """:param http: whether it is spoken to without TLS"""
        with Wire(job, host, http=http) as wire:
            yield cls(wire)

    def resolve(self, name: Name, machine: str) -> Resolved:
        """The image that ``name`` means for this kind of machine.

        :raises BuildError: there is none (``base-not-found``), the registry does not
            answer as it should (``registry-unreachable``), or gives something else
            than its digest says (``digest-mismatch``)
        """
        digest, manifest = self._manifest(name, name.reference)
        if "manifests" not in manifest:
            return Resolved(digest, None, manifest)
        wanted = choose(self._wire.job, manifest, machine)
        inner, chosen = self._manifest(name, wanted)
        return Resolved(inner, digest, chosen)

    def digest_of(self, name: Name) -> str | None:
        """The digest that the registry claims for a tag; None where it does not say.

        Not verified: good for comparing with one that is known, and cheap (Docker Hub
        does not count it).
        """
        with self._wire.ask(
            "HEAD", name.repository, f"manifests/{name.reference}"
        ) as answer:
            claimed = answer.headers.get("Docker-Content-Digest", "")
        return claimed if _DIGEST.match(claimed) else None

    def blob(
        self,
        name: Name,
        digest: str,
        target: Path,
        check: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        """Fetch a blob into a file.

        :param check: called between pieces; ends it by raising
        :param on_bytes: gets the size of every piece; negative, where one is lost
            and fetched again
        :raises BuildError: as :meth:`resolve`
        """
        for attempt in range(ATTEMPTS):
            got = 0
            try:
                with self._wire.ask(
                    "GET", name.repository, f"blobs/{digest}"
                ) as answer:
                    sha = hashlib.sha256()
                    with target.open("wb") as file:
                        for piece in answer.iter_content(CHUNK_BYTES):
                            check()
                            sha.update(piece)
                            file.write(piece)
                            got += len(piece)
                            on_bytes(len(piece))
            except requests.RequestException as error:
                check()
                on_bytes(-got)
                if attempt + 1 == ATTEMPTS:
                    raise self._wire.unreachable(error) from error
                self._wire.pause(attempt)
            else:
                self._wire.check_digest(digest, f"sha256:{sha.hexdigest()}")
                return

    def json_blob(self, name: Name, digest: str) -> bytes:
        """A small blob, such as an image's configuration."""
        body, _ = self._wire.fetch(name.repository, f"blobs/{digest}")
        self._wire.check_digest(digest, _sha256(body))
        return body

    def _manifest(self, name: Name, reference: str) -> tuple[str, dict[str, Any]]:
        body, told = self._wire.fetch(name.repository, f"manifests/{reference}")
        claimed = told.get("Docker-Content-Digest", "")
        digest = _sha256(body)
        if reference.startswith("sha512:"):
            sha512 = f"sha512:{hashlib.sha512(body).hexdigest()}"
            self._wire.check_digest(reference, sha512)
        elif ":" in reference:
            self._wire.check_digest(reference, digest)
        if claimed.startswith("sha256:"):
            self._wire.check_digest(claimed, digest)
        try:
            manifest = json.loads(body)
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            raise self._wire.odd("its answer is not a manifest")
        return digest, manifest


def choose(job: Job, index: Mapping[str, Any], machine: str) -> str:
    """The digest of the manifest for this kind of machine in an index.

    :raises BuildError: there is none (``base-not-found``)
    """
    wanted = ("linux", ARCHITECTURES.get(machine, machine))
    found: list[tuple[bool, str]] = []
    for entry in index["manifests"]:
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            platform, digest = entry["platform"], str(entry["digest"])
            fits = (platform["os"], platform["architecture"]) == wanted
            if fits and _DIGEST.match(digest):
                found.append((platform.get("variant") not in _PLAIN_VARIANTS, digest))
    if not found:
        raise job.error(
            f"the base image is not made for this machine's architecture ({wanted[1]})",
            code="base-not-found",
            hint="choose a base image for this architecture",
        )
    return min(found, key=lambda one: one[0])[1]


def _sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
