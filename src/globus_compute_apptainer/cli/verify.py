"""``gc-apptainer verify``: whether images are what they were when they were published.

Runs in a person's shell. A damaged image is moved out of its place, so that the next
task that wants it has it built anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from globus_compute_apptainer.cli import inputs, output, stored
from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.store import files, integrity
from globus_compute_apptainer.store.cache import Store, StoredImage


def run(options: argparse.Namespace) -> int:
    """The verb; 0 if all are well, 1 if one is damaged, or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    store = Store(config.cache_dir)
    if options.all == bool(options.image):
        raise SpecError(
            "name one image, or give --all",
            hint="gc-apptainer images lists them",
            code="function-unusable",
        )
    images = store.images() if options.all else [stored.find(options.image, config)]
    found = _examine(store, images)
    if options.json:
        output.data(
            [
                {"image": str(image.path), "name": image.manifest.name, "damage": text}
                for image, text in found
            ]
        )
    else:
        for image, text in found:
            print(f"{text or 'ok':8} {image.path}")
        damaged = sum(1 for _, text in found if text)
        print(f"{len(found)} images read, {damaged} damaged")
    return 1 if any(text for _, text in found) else 0


def _examine(
    store: Store, images: Iterable[StoredImage]
) -> list[tuple[StoredImage, str]]:
    """Each image once, however many specs have it, and what was wrong with it."""
    found: dict[str, tuple[StoredImage, str]] = {}
    for image in images:
        if str(image.path) not in found:
            found[str(image.path)] = image, _mended(store, image)
    return list(found.values())


def _mended(store: Store, image: StoredImage) -> str:
    health = store.examine(image)
    if health.image:
        store.quarantine(image)
        return f"damaged, {health.image}; moved to quarantine:"
    if health.bytecode:
        with files.translated(image.path):
            integrity.drop_bytecode(image)
        return f"its bytecode was damaged, {health.bytecode}; removed:"
    return ""
