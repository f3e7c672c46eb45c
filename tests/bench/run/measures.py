"""Samples, and the ratios between them with their intervals. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Sample = Mapping[str, float]
Samples = Mapping[str, Sequence[Sample]]  # way → one for each round
Measure = tuple[str, str]  # way and field

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """What is compared with what, and how it should be.

    :param most: whether ``must`` and ``aim`` are the most, not the least, allowed
    """

    label: str
    over: Measure
    under: Measure
    must: float | None = None
    aim: float | None = None
    most: bool = True


@dataclass(frozen=True)
class Limit:
    """A figure by itself, and the most it should be."""

    label: str
    of: Measure
    must: float
    aim: float


@dataclass(frozen=True)
class Case:
    """One thing that is measured, in several ways.

    :param ways: name → takes one sample
    """

    name: str
    title: str
    ways: Mapping[str, Callable[[], Sample]]
    ratios: Sequence[Ratio] = ()
    limits: Sequence[Limit] = field(default=())


def values(samples: Samples, measure: Measure) -> list[float]:
    way, name = measure
    return [sample[name] for sample in samples.get(way, ()) if name in sample]


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Where the median of such numbers lies in 95 of 100 cases (bootstrap)."""
    dice = random.Random(1)
    medians = sorted(
        statistics.median(dice.choices(numbers, k=len(numbers)))
        for _ in range(RESAMPLES)
    )
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def quantile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def table(case: Case, samples: Samples) -> str:
    """The case as text: medians, ratios of the same round, limits."""
    lines = [f"\n{case.name}: {case.title}"]
    for way, taken in samples.items():
        names = list(dict.fromkeys(name for sample in taken for name in sample))
        for name in names:
            found = values(samples, (way, name))
            low, middle, high = min(found), statistics.median(found), max(found)
            lines.append(
                f"  {way + ' ' + name:<52}{middle:>10.2f}{low:>10.2f}{high:>10.2f}"
            )
    lines += [line for ratio in case.ratios if (line := _ratio(ratio, samples))]
    lines += [line for limit in case.limits if (line := _limit(limit, samples))]
    return "\n".join(lines)


def _ratio(ratio: Ratio, samples: Samples) -> str:
    over, under = values(samples, ratio.over), values(samples, ratio.under)
    each = [a / b for a, b in zip(over, under, strict=False) if b]
    if not each:
        return ""
    low, high = interval(each)
    middle = statistics.median(each)
    line = f"  {ratio.label:<52}{middle:>9.2f}x{low:>9.2f}x{high:>9.2f}x"
    return line + _judged(middle, ratio.must, ratio.aim, most=ratio.most)


def _limit(limit: Limit, samples: Samples) -> str:
    found = values(samples, limit.of)
    if not found:
        return ""
    middle = statistics.median(found)
    line = f"  {limit.label:<52}{middle:>10.2f}{'':>20}"
    return line + _judged(middle, limit.must, limit.aim, most=True)


def _judged(found: float, must: float | None, aim: float | None, *, most: bool) -> str:
    if must is None:
        return ""
    sign = "≤" if most else "≥"
    holds = found <= must if most else found >= must
    told = f"   must {sign}{must:g}"
    told += f", aim {sign}{aim:g}" if aim is not None else ""
    return told + (": holds" if holds else ": DOES NOT HOLD")
