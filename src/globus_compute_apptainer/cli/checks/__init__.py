"""The doctor's checks, in the order in which they are reported."""

from __future__ import annotations

from globus_compute_apptainer.cli.checks import containers, network, packages, storage
from globus_compute_apptainer.cli.findings import Check

CHECKS: tuple[tuple[str, Check], ...] = (
    ("apptainer", containers.apptainer),
    ("user namespaces", containers.user_namespaces),
    ("subordinate ids", containers.subordinate_ids),
    ("fakeroot", containers.fakeroot),
    ("fuse device", containers.fuse_device),
    ("fuse tools", containers.fuse_tools),
    ("mksquashfs", containers.mksquashfs),
    ("overlays", containers.overlays),
    ("image cache", storage.cache),
    ("cache room", storage.cache_room),
    ("cache filesystem", storage.cache_filesystem),
    ("cache locks", storage.cache_locks),
    ("cache clock", storage.cache_clock),
    ("other caches", storage.other_caches),
    ("build scratch", storage.scratch),
    ("engine hook", packages.hook),
    ("endpoint program", packages.endpoint_program),
    ("upstream versions", packages.upstream_versions),
    ("uv", packages.uv),
    ("git", packages.git),
    ("package index", network.package_index),
    ("base registry", network.base_registry),
)
DEEP: tuple[tuple[str, Check], ...] = (("tiny image", containers.tiny_image),)
