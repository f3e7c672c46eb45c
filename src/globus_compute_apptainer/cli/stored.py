"""Images in the cache, by whatever name a person has for them.

Runs in ``gc-apptainer``; reads only, but for leases.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

from globus_compute_apptainer.cli import inputs
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.errors import ContainerError
from globus_compute_apptainer.store.cache import Store, StoredImage

_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")


def find(argument: str, config: ContainersConfig) -> StoredImage:
    """The image that ``argument`` means: a digest of an image or of a spec (eight
    digits are enough), the name of an image, or a spec.

    :raises ContainerError: it is not in the cache (``image-not-built``), or several
        are meant
    :raises SpecError: it is a spec, but not a valid one
    """
    by_digest = named_by_digest(argument)
    if by_digest is not None:
        return _one(argument, _with_digest(by_digest, config))
    if not _is_spec(argument, config):
        found = [i for i in _images(config) if i.manifest.name == argument]
        if not found:
            raise missing(f"no image in the cache is named {argument!r:.80}")
        return max(found, key=lambda image: image.manifest.created)
    wanted = inputs.wanted(inputs.spec(argument, config), config)
    stored = Store(config.cache_dir).lookup(wanted.image.digest)
    return _one(argument, [] if stored is None else [stored])


@contextlib.contextmanager
def in_use(image: StoredImage, config: ContainersConfig) -> Iterator[None]:
    """Keep an image from being removed meanwhile.

    :raises ContainerError: it has just been removed (``image-not-built``)
    """
    store = Store(config.cache_dir)
    if store.use(image) is None:
        raise missing(f"{image.path} has just been removed")
    try:
        yield
    finally:
        store.leases.close()


def named_by_digest(argument: str) -> str | None:
    """The digits, if ``argument`` is a digest or the beginning of one."""
    found = _DIGEST.fullmatch(argument)
    return found[1] if found and not _is_there(argument) else None


def _is_spec(argument: str, config: ContainersConfig) -> bool:
    written = argument.lstrip().startswith("{") or argument == "-"
    return written or argument in config.images or _is_there(argument)


def _is_there(path: str) -> bool:
    # Path.exists() raises for names that no file can have.
    return os.path.exists(path)  # noqa: PTH110


def _with_digest(digits: str, config: ContainersConfig) -> list[StoredImage]:
    def has(image: StoredImage) -> bool:
        manifest = image.manifest
        told = (manifest.image_digest, manifest.spec_digest)
        return any(one.removeprefix("sha256:").startswith(digits) for one in told)

    # Several specs may share an image.
    return list({image.path: image for image in _images(config) if has(image)}.values())


def _images(config: ContainersConfig) -> list[StoredImage]:
    return list(Store(config.cache_dir).images())


def _one(argument: str, found: list[StoredImage]) -> StoredImage:
    if len(found) == 1:
        return found[0]
    if found:
        digests = ", ".join(image.manifest.image_digest for image in found)
        raise ContainerError(
            f"{argument} is the beginning of several digests",
            hint=f"give more digits: {digests}",
            code="image-not-built",
        )
    raise missing(f"there is no image of {argument:.80} in the cache")


def missing(message: str) -> ContainerError:
    """The error of an image that is not in the cache."""
    return ContainerError(
        message,
        hint="gc-apptainer build SPEC makes it; gc-apptainer images lists all",
        code="image-not-built",
    )
