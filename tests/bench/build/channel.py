"""A conda channel for the benchmark: made here, since none may be reachable.

Twelve packages with a dependency chain, 3,600 files and 50 MB in all, in the newer
format; as large as a small scientific environment, and solved as quickly as it gets.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from provision.conda_channel import Channel, Package

PACKAGES = 12
FILES = 300
OTHER = "bench-other"


def spec(*more: str) -> dict[str, Any]:
    """A spec that wants all of the channel's packages.

    :param more: names of packages to ask for as well
    """
    return {"conda": ["bench-tool", *more]}


def url(folder: Path) -> str:
    """Of the channel in ``folder``; it is made there if it is not."""
    place = folder / "channel"
    done = place / "done"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        Channel(place).add(*_packages())
        done.touch()
    return f"file://{place}"


def _packages() -> list[Package]:
    source = random.Random(0)
    made = [
        Package(
            f"bench-library-{number}",
            depends=[f"bench-library-{number - 1}"] if number else [],
            files={
                f"share/bench/{number}/{name}": source.randbytes(7_000).hex()
                for name in range(FILES)
            },
            suffix=".conda",
        )
        for number in range(PACKAGES)
    ]
    tool = Package(
        "bench-tool",
        depends=[f"bench-library-{PACKAGES - 1}"],
        files={"bin/bench-tool": "#!/bin/sh\nexec test -d @PREFIX@/share/bench/0\n"},
        suffix=".conda",
    )
    return [*made, tool, Package(OTHER, files={"share/other": "x"}, suffix=".conda")]
