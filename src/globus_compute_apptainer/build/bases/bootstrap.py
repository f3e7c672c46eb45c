"""Base images made of a distribution's packages: Debian and its kin.

Runs in the endpoint process, in the thread of a build. ``mmdebstrap`` does what
``debootstrap`` does, and does it for an ordinary user with subordinate ids. What it
makes is never the same twice, so a release is made once and kept until a job is
``fresh``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.bases.layout import Layout
from globus_compute_apptainer.build.bases.localfiles import from_layout
from globus_compute_apptainer.build.bases.registry import ARCHITECTURES
from globus_compute_apptainer.build.bases.sources import Asked, Found
from globus_compute_apptainer.build.bases.tags import Known, sha256_of
from globus_compute_apptainer.build.layers import copy_file
from globus_compute_apptainer.build.scratch import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
# Left by the making; the hook gets the new root as its own first argument.
_FORGET: Final = (
    'rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/hostname" "$1/etc/resolv.conf"'
)
_INDEX: Final = re.compile(r"'(?P<uri>[^' ]+?)/+dists/(?P<suite>[^' ]+)/InRelease'")


@contextlib.contextmanager
def found(asked: Asked) -> Iterator[Found]:
    """A release as a base; others that want the same one wait while it is made.

    :raises BuildError: it cannot be made here (``host-unsuitable``), or the mirror
        does not have it (``base-not-found``)
    """
    job, suite = asked.job, asked.job.image.base_image
    key = (asked.reference, job.machine, job.config.debian_mirror or "")
    with asked.alone("\0".join(key)):
        known = asked.tags.read(*key)
        if known and asked.has(known.digest) and not job.fresh:
            yield _found(asked, known, None)
            return
        job.enter("pull", asked.reference)
        file = job.scratch / "bootstrap.sif"
        file.unlink(missing_ok=True)
        try:
            _make(job, suite, file)
            now = asked.now()
            known = Known(sha256_of(file, lambda _: job.check()), now)
            asked.tags.write(known, *key)
            yield _found(asked, known, file)
        finally:
            file.unlink(missing_ok=True)


def _found(asked: Asked, known: Known, file: Path | None) -> Found:
    def make(target: Path) -> None:
        if file is None:
            raise FileNotFoundError(f"{asked.reference} has gone from the shelf")
        copy_file(file, target, asked.job.check)

    return Found(known.digest, "bootstrap", asked.reference, known.asked_at, make)


def _make(job: Job, suite: str, target: Path) -> None:
    place = job.scratch / "bootstrap"
    place.mkdir()
    try:
        archive = place / "root.tar"
        _install(job, suite, archive)
        layout = _layout(job, archive, place / "layout")
        from_layout(job, layout, layout.resolve("", job.machine), target)
    finally:
        remove_tree(place)


def _install(job: Job, suite: str, archive: Path) -> None:
    """Let ``mmdebstrap`` write the archive of a root directory."""
    if shutil.which("mmdebstrap") is None:
        raise job.error(
            "mmdebstrap is not installed on the endpoint's machine",
            code="host-unsuitable",
            hint="the admin must install it (Debian, Ubuntu); or use an image of that "
            f"release from a registry, as in docker://debian:{suite}-slim",
        )
    work = archive.parent / "tmp"
    work.mkdir()
    mode = "auto" if os.geteuid() == 0 else "unshare"
    argv = ["mmdebstrap", "--variant=minbase", f"--mode={mode}", "--skip=output/dev"]
    argv += [f"--customize-hook={_FORGET}", "--format=tar", *_network(job)]
    argv += [suite, str(archive)]
    mirror = job.config.debian_mirror or _own_mirror(job)
    argv += [mirror] if mirror else []
    env = {**job.apptainer.environment(), **_proxies(job), "TMPDIR": str(work)}
    with _reachable(job.scratch, archive.parent, work):
        ended = job.attempt(argv, env=env, shown=f"mmdebstrap {suite}")
    if not ended.ok:
        raise _failed(job, suite)


@contextlib.contextmanager
def _reachable(scratch: Path, *folders: Path) -> Iterator[None]:
    """The installed system belongs to subordinate ids, for which this user's private
    directories are closed. Nothing but the bootstrap is in them meanwhile."""
    before = scratch.stat().st_mode & 0o7777
    for folder in folders:
        folder.chmod(0o711)
    folders[-1].chmod(0o1777)
    scratch.chmod(before | 0o011)
    try:
        yield
    finally:
        scratch.chmod(before)


def _network(job: Job) -> list[str]:
    if job.site.ca_bundle is None:
        return []
    return [f'--aptopt=Acquire::https::CaInfo "{job.site.ca_bundle}"']


def _proxies(job: Job) -> dict[str, str]:
    return {k: v for k, v in job.site.variables.items() if k.lower().endswith("_proxy")}


def _own_mirror(job: Job) -> str | None:
    """Of this machine's own release, where that is Debian's."""
    with contextlib.suppress(OSError):
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
        told = dict(line.replace('"', "").partition("=")[::2] for line in lines)
        if told.get("ID") != "debian" or shutil.which("apt-get") is None:
            return None
        said: list[str] = []
        job.attempt(
            ["apt-get", "update", "--print-uris"],
            env=job.apptainer.environment(),
            on_line=said.append,
        )
        for row in map(_INDEX.match, said):
            if row and row["suite"] == told.get("VERSION_CODENAME"):
                return row["uri"]
    return None


def _failed(job: Job, suite: str) -> BuildError:
    said = "\n".join(job.transcript.tail)
    if re.search(r"404 +Not Found|does not have a Release file|unknown suite", said):
        return job.error(
            f"the Debian mirror has no release {suite!r}",
            code="base-not-found",
            hint="check `base_image`; for other distributions the admin must name a "
            "mirror as `build.debian_mirror`",
        )
    if re.search(r"unshare|newuidmap|subuid|Permission denied", said):
        return job.error(
            "this machine does not let this user install a system",
            code="host-unsuitable",
            hint="the admin must add this user to /etc/subuid and /etc/subgid, and "
            "`build.tmp_dir` must lie where those ids may go",
        )
    return job.failed()


def _layout(job: Job, archive: Path, folder: Path) -> Layout:
    """An OCI layout with one layer; the archive moves into it."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = sha256_of(archive, lambda _: job.check())
    size = archive.stat().st_size
    archive.rename(blobs / layer.partition(":")[2])

    def put(kind: str, told: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(told).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}

    config = {
        "architecture": ARCHITECTURES.get(job.machine, job.machine),
        "os": "linux",
        "config": {"Env": [_PATH], "Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": put(_CONFIG, config),
        "layers": [{"mediaType": _LAYER, "digest": layer, "size": size}],
    }
    index = {"schemaVersion": 2, "manifests": [put(_MANIFEST, manifest)]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    version = json.dumps({"imageLayoutVersion": "1.0.0"})
    (folder / "oci-layout").write_text(version, encoding="utf-8")
    return Layout(job, folder)
