"""The payload of an image: what a URL leads to, and the files that the spec brings.

Runs in the endpoint process, in the thread of a build. Nothing of the payload runs
here: it is fetched, unpacked and read on the host, and becomes a layer. Its own
repo2docker files are read as :mod:`..spec.ingest` says; what they ask for must be
allowed as if the spec had asked for it.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build import layers
from globus_compute_apptainer.build.layer import (
    ENVIRONMENT_SCRIPTS,
    PAYLOAD,
    Layer,
    layer_key,
    place_marker,
)
from globus_compute_apptainer.build.payload import archive, contents
from globus_compute_apptainer.build.payload.contents import Broken, Limits
from globus_compute_apptainer.build.payload.download import download
from globus_compute_apptainer.build.payload.repository import fetch_repository
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec import ingest, policy
from globus_compute_apptainer.spec.ingest import Ingested
from globus_compute_apptainer.spec.model import RunSpec
from globus_compute_apptainer.spec.refusal import Refusal

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.keeper import Keeper
    from globus_compute_apptainer.build.layers import Below

MAX_TEXT_BYTES: Final = 1024**2
"""Of a file that says what an image is to hold."""

FILES_TIME: Final = 315532800
"""Time of the files that the spec brings: the beginning of 1980, as in zip files."""

_SCRIPT: Final = "96-gc-apptainer-payload.sh"
_AT_ROOT: Final = ("pyproject.toml", "setup.py", "setup.cfg")
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Fetched:
    """A payload on this host, for as long as the build's scratch directory is there.

    :param root: the tree that is to be ``/payload``
    :param lock: plain JSON: where it came from, ``commit`` or ``sha256``, what it is
    :param ingested: what its repo2docker files ask for
    """

    root: Path
    lock: Mapping[str, Any] = field(default_factory=dict)
    ingested: Ingested = field(default_factory=Ingested)


def fetch(job: Job) -> Fetched | None:
    """Bring the payload here and read it; None where the spec has none.

    :raises BuildError: it cannot be had (``payload-not-found``,
        ``payload-unreachable``), is not what was locked (``payload-changed``), is too
        large (``payload-too-large``), not acceptable (``payload-invalid``), or asks for
        what policy does not allow (``policy-denied``)
    """
    image = job.image
    if not (image.payload or image.files):
        return None
    job.enter("payload", f"fetch {image.payload}" if image.payload else "")
    root = job.scratch / "payload" / PAYLOAD.lstrip("/")
    root.mkdir(parents=True)
    source = _from_url(job, image.payload, root) if image.payload else {}
    try:
        contents.check_links(root)
        _lay_files(root, dict(image.files))
    except Broken as error:
        raise archive.invalid(job, str(error), "remove it from the payload") from error
    ingested = _read(job, root)
    _check(job, ingested)
    for note in ingested.notes:
        job.transcript.note(note)
    lock = {**source, "tree": contents.digest(root, job), **_told(ingested)}
    return Fetched(root, lock, ingested)


def payload_layer(job: Job, below: Below, fetched: Fetched, shelf: Keeper) -> Layer:
    """The layer that puts the payload at ``/payload`` and on ``PYTHONPATH``.

    Where the payload is itself a project that was installed it is not on
    ``PYTHONPATH``: its source tree would hide what was built from it. Does not depend
    on what is below.

    :raises BuildError: it cannot be packed
    """
    del below
    shown = not any(name.startswith(".[") or name == "." for name in _projects(fetched))
    key = layer_key("payload", tree=fetched.lock["tree"], on_path=shown)

    def make(workspace: Path) -> Mapping[str, Any]:
        top = fetched.root.parent
        # Code of the payload may have run since, to build the project.
        if contents.digest(fetched.root, job) != fetched.lock["tree"]:
            raise job.error("the payload was changed while the image was built")
        place_marker(top, key)
        if shown:
            script = top / ENVIRONMENT_SCRIPTS.lstrip("/") / _SCRIPT
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(
                f'export PYTHONPATH="{PAYLOAD}${{PYTHONPATH:+:$PYTHONPATH}}"\n',
                encoding="utf-8",
            )
        _open_modes(top)
        layers.squash(job, top, workspace / layers.LAYER_FILE)
        return {}

    made = layers.kept_layer(job, shelf, "payload", key, make)
    # The same files may have come from elsewhere when the layer was made.
    return replace(made, lock=fetched.lock)


def _projects(fetched: Fetched) -> tuple[str, ...]:
    return fetched.ingested.projects


def _from_url(job: Job, url: str, root: Path) -> dict[str, str]:
    """Fill the empty directory ``root``; returns what to write into the lock."""
    place, _, fragment = url.partition("#")
    if url.startswith("git+"):
        size = job.config.max_payload_size * archive.EXPANSION
        commit = fetch_repository(job, url, root, Limits(job, size))
        return {"url": url, "commit": commit}
    file = job.scratch / "payload.archive"
    try:
        limit = job.config.max_payload_size
        found = download(job, place, file, limit=limit)
        wanted = fragment.removeprefix("sha256=")
        if wanted and wanted != found.sha256:
            raise job.error(
                f"the payload's SHA-256 is {found.sha256}, not {wanted}",
                code="payload-changed",
                hint="the file behind the URL is another one now",
            )
        job.transcript.begin("unpack the payload")
        archive.unpack(job, file, root)
    finally:
        file.unlink(missing_ok=True)
    return {"url": place, "sha256": found.sha256}


def _open_modes(top: Path) -> None:
    """Whatever this process's umask is, everyone in the image may read all of it."""
    top.chmod(0o755)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)


def _lay_files(root: Path, files: Mapping[str, str]) -> None:
    """Put the spec's files where the payload's own would be read, in their place."""
    folder = next((name for name in ingest.FOLDERS if (root / name).is_dir()), "")
    for name, text in files.items():
        place = root / (name if name in _AT_ROOT else f"{folder}/{name}".lstrip("/"))
        if place.is_dir() and not place.is_symlink():
            raise Broken(f"{name} is a directory in it, and a file of the spec")
        place.unlink(missing_ok=True)
        place.write_text(text, encoding="utf-8", newline="")
        place.chmod(0o644)
        contents.set_time(place, FILES_TIME)


class _Texts(Mapping[str, str]):
    """The texts of a tree's files, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.names = {
            path.relative_to(root).as_posix(): path.is_file()
            for path in root.rglob("*")
            if path.exists()
        }
        # repo2docker follows a link to such a directory, and so do the names below it.
        for name in ingest.FOLDERS:
            if (root / name).is_symlink() and (root / name).is_dir():
                for path in (root / name).iterdir():
                    self.names[f"{name}/{path.name}"] = path.is_file()

    def __getitem__(self, name: str) -> str:
        if not self.names.get(name):
            raise KeyError(name)
        with (self._root / name).open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise Refusal(f"has {name!r:.80}, a file of more than 1 MiB")
        encoding = next(
            (name for mark, name in _MARKS if data.startswith(mark)), "utf-8"
        )
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name for name, is_file in self.names.items() if is_file)

    def __len__(self) -> int:
        return sum(self.names.values())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.names.get(name, False)


def _read(job: Job, root: Path) -> Ingested:
    texts = _Texts(root)
    given = {name for name, _ in job.image.files} if job.image.payload else set()
    try:
        found = ingest.ingest(texts, texts.names, given=given)
    except SpecError as error:
        raise job.error(
            f"the payload's own files are not accepted: {error.message}",
            code="payload-invalid",
            hint=error.hint,
        ) from error
    for name in ("postBuild", "start"):
        script = root / found.folder / name
        if script.is_file():
            script.chmod(0o755)  # as repo2docker does
    return found


def _check(job: Job, ingested: Ingested) -> None:
    """:raises BuildError: the payload asks for what policy does not allow"""
    if job.policy is None:
        return
    own = [name for name in policy.SCRIPTS if _has(ingested, name)]
    asked = replace(
        job.image,
        apt=(*job.image.apt, *ingested.apt),
        conda=ingested.conda,
        files=(*job.image.files, *((name, "") for name in own)),
    )
    try:
        policy.check(asked, RunSpec(), job.policy, default_base=True)
    except SpecError as error:
        raise job.error(
            f"the payload asks for what is not allowed here: {error.message}",
            code="policy-denied",
            hint=error.hint,
            stage="policy",
        ) from error


def _has(ingested: Ingested, script: str) -> bool:
    return any(path.rpartition("/")[2] == script for path in ingested.read)


def _told(ingested: Ingested) -> dict[str, Any]:
    told: dict[str, Any] = {"read": list(ingested.read)} if ingested.read else {}
    if ingested.start:
        told["start"] = "/".join(filter(None, (PAYLOAD, ingested.folder, "start")))
    return told
