"""``gc-apptainer prune``: remove from the cache what is not used.

Runs in a person's shell. Never removes what somebody uses at this moment, nor a base
that an image in the cache was made of. Old logs and locks go whatever the limit is.
"""

from __future__ import annotations

import argparse
from collections import Counter

from globus_compute_apptainer.cli import inputs, output
from globus_compute_apptainer.config import ContainersConfig
from globus_compute_apptainer.config.values import size
from globus_compute_apptainer.errors import ConfigError
from globus_compute_apptainer.store.cache import VERSION, Store
from globus_compute_apptainer.store.litter import other_versions
from globus_compute_apptainer.store.room import Freed, Thing
from globus_compute_apptainer.store.upkeep import Swept


def run(options: argparse.Namespace) -> int:
    """The verb; 0 or an exception."""
    config = inputs.settings(options.config, options.cache_dir).config
    store = Store(config.cache_dir)
    limit = _limit(options.to, config)
    old = store.remove_old(dry=options.dry_run)
    if not options.dry_run:
        store.prepare()
    freed = store.make_room(limit, dry=options.dry_run)
    others = [str(path) for path in other_versions(config.cache_dir, VERSION)]
    if options.json:
        output.data(
            {
                "dry_run": options.dry_run,
                "limit": limit,
                "before": freed.before,
                "freed": freed.size,
                "left": freed.left,
                "old_logs": old.logs,
                "old_logs_size": old.size,
                "old_locks": old.locks,
                "removed": [_fields(thing) for thing in freed.things],
                "other_versions": others,
            }
        )
        return 0
    _show(freed, dry=options.dry_run)
    _show_old(old, dry=options.dry_run)
    if freed.left > limit:
        print(f"{output.size(freed.left)} are in use: more than was asked for")
    for path in others:
        print(f"{path} is a cache of another version, and was left alone")
    return 0


def _limit(given: str | None, config: ContainersConfig) -> int:
    """What is to be left: as asked for, else as configured, else nothing."""
    if given is None:
        return config.max_cache_size or 0
    if given == "0":
        return 0
    try:
        return size(given)
    except ConfigError as error:
        raise ConfigError(f"--to: {error.message}") from None


def _fields(thing: Thing) -> dict[str, object]:
    return {
        "kind": thing.kind,
        "name": thing.name,
        "size": thing.size,
        "used": int(thing.used),
    }


def _show(freed: Freed, *, dry: bool) -> None:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for thing in freed.things:
        counts[thing.kind] += 1
        sizes[thing.kind] += thing.size
    rows = [(kind, str(counts[kind]), output.size(sizes[kind])) for kind in counts]
    if rows:
        output.table(("kind", "things", "size"), rows, right=("things", "size"))
    would = "would be freed" if dry else "freed"
    size_before, left = output.size(freed.before), output.size(freed.left)
    print(f"{output.size(freed.size)} {would}: {left} left of {size_before}")


def _show_old(old: Swept, *, dry: bool) -> None:
    if old == Swept():
        return
    would = "would be removed" if dry else "removed"
    what = (
        f"{old.logs} old build logs ({output.size(old.size)}) and {old.locks} old locks"
    )
    print(f"{what} {would}; they count for nothing above")
