"""Can images be kept here, and built?"""

from __future__ import annotations

from pathlib import Path

from globus_compute_apptainer.build.scratch import NEED_BYTES
from globus_compute_apptainer.cli import output
from globus_compute_apptainer.cli.findings import Finding, fail, ok, warn
from globus_compute_apptainer.cli.host import Host
from globus_compute_apptainer.cli.inputs import Settings
from globus_compute_apptainer.store.cache import VERSION
from globus_compute_apptainer.store.litter import other_versions
from globus_compute_apptainer.store.presence import Timing

EXPIRY = Timing().expiry

LEAST_ROOM = 2 * 1000**3
"""Below this, hardly any image can be published."""

COMFORTABLE_ROOM = 20 * 1000**3

SHARED = frozenset(
    "9p afs beegfs ceph cifs fuse.beegfs fuse.ceph fuse.glusterfs fuse.juicefs"
    " fuse.sshfs fuse.weka glusterfs gpfs lustre nfs nfs4 orangefs panfs pvfs2 smb3"
    " wekafs".split()
)
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_CACHE_FIX = "set cache_dir in the containers: block to a folder that you may write to"


def cache(host: Host, settings: Settings) -> Finding:
    """Whether the image cache is there, or could be made, and can be written to."""
    path = settings.config.cache_dir
    folder = host.existing(path)
    if problem := host.write_error(folder):
        return fail(f"{path} cannot be used: {folder}: {problem}", _CACHE_FIX)
    return ok(str(path) if folder == path else f"{path} (made by the first build)")


def cache_room(host: Host, settings: Settings) -> Finding:
    """Whether images fit."""
    path = settings.config.cache_dir
    free = host.free(host.existing(path))
    found = f"{output.size(free)} free for {path}"
    if free < LEAST_ROOM:
        return fail(found, "make room, or set cache_dir to a larger filesystem")
    if free < COMFORTABLE_ROOM:
        return warn(found, "an image takes 0.1 to 10 GB: make room before it is needed")
    return ok(found)


def cache_filesystem(host: Host, settings: Settings) -> Finding:
    """Whether the workers' nodes see the images too."""
    mount = host.mount(host.existing(settings.config.cache_dir))
    where = f"{mount.kind} at {mount.point}"
    if mount.kind in SHARED:
        return ok(f"{where}: shared between nodes")
    if mount.kind in _IN_MEMORY:
        return warn(
            f"{where}: in memory, and lost when the machine restarts", _CACHE_FIX
        )
    if settings.provider not in ("", "LocalProvider"):
        return warn(
            f"{where}: it does not look shared, but {settings.provider} runs tasks on"
            " other nodes",
            "set cache_dir to a folder that those nodes see under the same path",
        )
    return ok(f"{where}: for workers on this machine only")


def cache_locks(host: Host, settings: Settings) -> Finding:
    """Whether two endpoints can keep from building the same image at once, and how soon
    the death of one is noticed."""
    path = settings.config.cache_dir
    folder = host.existing(path)
    if host.write_error(folder):
        return fail(f"cannot be tried: {folder} cannot be written to", _CACHE_FIX)
    if problem := host.lock_error(folder):
        return fail(
            f"two processes do not exclude each other in {folder}: {problem}",
            "set cache_dir to another filesystem: this one does not keep to O_EXCL",
        )
    if host.mount(folder).kind not in SHARED:
        return ok("locks exclude other processes; the death of one is noticed at once")
    return ok(
        "locks exclude other processes; the death of one on another machine is noticed"
        f" after {EXPIRY / 60:.0f} minutes of silence"
    )


def cache_clock(host: Host, settings: Settings) -> Finding:
    """Whether times in the cache mean something here."""
    folder = host.existing(settings.config.cache_dir)
    ahead = host.clock_difference(folder)
    if ahead is None:
        return fail(f"cannot be told: {folder} cannot be written to", _CACHE_FIX)
    if abs(ahead) > EXPIRY:
        return warn(
            f"the clock of {folder} differs from this machine's by {abs(ahead):.0f} s",
            "set the clocks (NTP): the age of images and failures is told by them",
        )
    return ok("the filesystem's clock and this machine's agree")


def other_caches(host: Host, settings: Settings) -> Finding:
    """What else is in the cache directory, and the site's own caches."""
    config = settings.config
    missing = [path for path in config.shared_caches if not host.is_cache(path)]
    if missing:
        return warn(
            f"no image cache of this version: {', '.join(map(str, missing))}",
            "correct shared_caches, or fill it: gc-apptainer build --cache-dir",
        )
    if others := other_versions(config.cache_dir, VERSION):
        return warn(
            f"of another version, and left alone: {', '.join(map(str, others))}",
            "delete it once no endpoint of that version uses it",
        )
    count = len(config.shared_caches)
    return ok(f"{count} shared caches" if count else "none")


def scratch(host: Host, settings: Settings) -> Finding:
    """Where a build would work now, and the room there."""
    place: Path = host.scratch(settings.config.build)
    free = host.free(place)
    found = f"{place}, {output.size(free)} free"
    if free < NEED_BYTES:
        return warn(
            f"{found}; a build asks for {output.size(NEED_BYTES)}",
            "make room, or set build.tmp_dir to a larger local filesystem",
        )
    return ok(found)
