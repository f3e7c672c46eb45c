"""What is measured: the specs, the ways to build each, and the ratios to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENDPOINT = ("globus-compute-endpoint==2.2.0", "globus-compute-common==0.2.0")
"""What the peer puts into every image; it needs Python 3.9."""


@dataclass(frozen=True)
class Ratio:
    """One figure over another, of the same round.

    :param over: (way, field) of the numerator; ``under`` of the denominator
    :param must: what it has to be at least, or at most where ``most`` is set
    """

    label: str
    over: tuple[str, str]
    under: tuple[str, str]
    must: float | None = None
    aim: float | None = None
    most: bool = False


@dataclass(frozen=True)
class Case:
    """One spec.

    :param spec: fields of a container spec, without its base
    :param prime: another spec that brings the same packages into the cache
    :param modules: imported to see that the image is right, and timed
    :param packages: whose versions are printed
    :param command: run to see that the image is right, where there is no import
    """

    name: str
    ways: tuple[str, ...]
    spec: Mapping[str, Any] = field(default_factory=dict)
    prime: Mapping[str, Any] | None = None
    second: Mapping[str, Any] | None = None
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ratios: tuple[Ratio, ...] = ()


PANDAS = Case(
    "pandas",
    ways=("a39", "a", "b", "b-nobytecode", "b-cold", "c", "d", "d39"),
    spec={"pip": ["pandas"]},
    prime={"pip": ["pandas", "six"]},
    modules=("pandas",),
    packages=("pandas", "numpy"),
    ratios=(
        Ratio("warm, to ready", ("a", "ready"), ("d", "ready"), 18, 40),
        Ratio("warm, to ready", ("b", "ready"), ("d", "ready"), 4, 8),
        Ratio("bytecode in both", ("a", "ready"), ("d", "complete")),
        Ratio("bytecode in both", ("b", "ready"), ("d", "complete")),
        Ratio("bytecode in neither", ("b-nobytecode", "ready"), ("d", "ready")),
        Ratio("endpoint in both, to ready", ("a39", "ready"), ("d39", "ready")),
        Ratio("endpoint, bytecode in both", ("a39", "ready"), ("d39", "complete")),
        Ratio("as published : ours, no endpoint", ("a39", "ready"), ("d", "ready")),
        Ratio("cold wheels, bytecode", ("a", "ready"), ("c", "complete"), 6, 10),
        Ratio("cold wheels, bytecode", ("b-cold", "ready"), ("c", "complete"), 2, 3),
        Ratio("cold wheels : (b) warm", ("b", "ready"), ("c", "complete")),
        Ratio(
            "first import, new process", ("d", "later.process"), ("a", "first.process"),
            1.1, 1.0, most=True,
        ),
        Ratio(
            "the same, its own processor time", ("d", "later.cpu"), ("a", "first.cpu"),
            most=True,
        ),
        Ratio(
            "first import, new container",
            ("d", "later.container"), ("a", "first.container"),
            1.1, 1.0, most=True,
        ),
        Ratio(
            "the same, at ready", ("d", "first.process"), ("a", "first.process"),
            most=True,
        ),
    ),
)  # fmt: skip

SCIENCE = Case(
    "science",
    ways=("a", "b", "b-nobytecode", "c", "d"),
    spec={"pip": ["pandas", "scikit-learn", "matplotlib"]},
    prime={"pip": ["pandas", "scikit-learn", "matplotlib", "attrs"]},
    modules=("pandas", "sklearn", "matplotlib.pyplot"),
    packages=("pandas", "scikit-learn", "matplotlib"),
    ratios=(
        Ratio("warm, to ready", ("a", "ready"), ("d", "ready"), 18, 40),
        Ratio("warm, to ready", ("b", "ready"), ("d", "ready")),
        Ratio("bytecode in both", ("a", "ready"), ("d", "complete")),
        Ratio("bytecode in both", ("b", "ready"), ("d", "complete")),
        Ratio("bytecode in neither", ("b-nobytecode", "ready"), ("d", "ready")),
        Ratio("cold wheels, bytecode", ("a", "ready"), ("c", "complete")),
        Ratio(
            "first import, new process", ("d", "later.process"), ("a", "first.process"),
            most=True,
        ),
    ),
)  # fmt: skip

APT = Case(
    "apt",
    ways=("a-apt", "b", "b-second", "d-apt", "d-apt-first"),
    spec={"apt": ["git"]},
    second={"apt": ["git"], "pip": ["attrs"]},
    command=("git", "--version"),
    ratios=(
        Ratio("first on this base", ("a-apt", "ready"), ("d-apt-first", "ready")),
        Ratio("first on this base", ("b", "ready"), ("d-apt-first", "ready"), 1),
        Ratio("first spec, lists known", ("a-apt", "ready"), ("d-apt", "ready")),
        Ratio("first spec, lists known", ("b", "ready"), ("d-apt", "ready"), 1),
        Ratio(
            "second spec, its apt layer there",
            ("b-second", "ready"), ("d-apt", "second"), None, 2,
        ),
    ),
)  # fmt: skip

CONDA = Case(
    "conda",
    ways=("conda-cold", "conda-warm"),
    command=("bench-tool",),
    ratios=(
        Ratio("cold : warm packages", ("conda-cold", "ready"), ("conda-warm", "ready")),
    ),
)

BASE = Case(
    "base",
    ways=("pull", "base"),
    command=("python3", "--version"),
    ratios=(
        Ratio("base taken in", ("pull", "ready"), ("base", "base"), 5, 8),
        Ratio("an image of it, to ready", ("pull", "ready"), ("base", "ready")),
    ),
)

SMOKE = Case(
    "smoke",
    ways=("d",),
    spec={"pip": ["attrs"]},
    modules=("attrs",),
    packages=("attrs",),
)

CASES = {case.name: case for case in (PANDAS, SCIENCE, APT, CONDA, BASE)}
