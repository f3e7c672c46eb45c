"""Samples as text: a line for each way, and a line for each ratio."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.build.cases import Case, Ratio

Samples = Mapping[str, Sequence[Mapping[str, Any]]]


def value(sample: Mapping[str, Any], field: str) -> float | None:
    """``first.process`` of a sample, if it has that."""
    found: Any = sample
    for name in field.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def values(samples: Iterable[Mapping[str, Any]], field: str) -> list[float]:
    return [v for v in (value(sample, field) for sample in samples) if v is not None]


def of_case(case: Case, samples: Samples, labels: Mapping[str, str]) -> str:
    """The tables of one case."""
    head = (
        f"\n{case.name}: {json.dumps(dict(case.spec)) if case.spec else 'see README'}"
    )
    lines = [
        head,
        f"{'':<52}{'median s':>9}{'min':>8}{'max':>8}{'cpu s':>8}{'MB':>10}"
        f"{'import: container':>19}{'process':>9}",
    ]
    for way, taken in samples.items():
        lines += _of_way(labels.get(way, way), taken)
    ratios = [line for ratio in case.ratios if (line := _of_ratio(ratio, samples))]
    if ratios:
        title = f"{'ratio of medians':<52}{'':>9}{'min':>8}{'max':>8}{'cpu':>8}"
        lines += ["", f"{title}{'must':>8}{'aim':>7}", *ratios]
    lines += _stages(samples)
    return "\n".join(lines)


def _of_way(label: str, taken: Sequence[Mapping[str, Any]]) -> list[str]:
    errors = [sample["error"] for sample in taken if "error" in sample]
    good = [sample for sample in taken if "error" not in sample]
    lines = [f"{label}: FAILED: {error}" for error in errors]
    if not good:
        return lines
    layered = any("stages" in sample for sample in good)
    rows = [("ready", ": ready" if layered else "", "first", "size")]
    if any(sample["bytecode"] for sample in good):
        rows.append(("complete", "  … with bytecode", "later", "bytecode"))
    rows += [
        ("second", "  … second spec: ready", "", ""),
        ("second_complete", "  … second spec: with bytecode", "", ""),
        ("base", "  … the base alone", "", ""),
        ("layer_hit", "  … its layers cached", "", ""),
        ("image_hit", "  … itself cached", "", ""),
    ]
    for field, note, state, size in rows:
        if times := values(good, field):
            name = note if note.startswith(" ") else label + note
            cpu = values(good, f"cpu.{field}")
            lines.append(_row(name, times, cpu, good, state, size))
    versions = good[-1].get("versions") or {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*lines, f"      {told}"] if told else lines


def _row(
    name: str,
    times: Sequence[float],
    cpu: Sequence[float],
    good: Sequence[Mapping[str, Any]],
    state: str,
    size: str,
) -> str:
    middle = statistics.median(times)
    line = f"{name:<52}{_s(middle):>9}{_s(min(times)):>8}{_s(max(times)):>8}"
    used = _s(statistics.median(cpu)) if cpu else ""
    line += f"{used:>8}"
    sizes = values(good, size) if size else []
    plus = "+" if size == "bytecode" else ""
    megabytes = f"{plus}{statistics.median(sizes) / 1e6:.1f}" if sizes else ""
    line += f"{megabytes:>10}"
    for field, width in (("container", 19), ("process", 9)):
        seen = values(good, f"{state}.{field}") if state else []
        text = f"{statistics.median(seen):.2f}" if seen else ""
        line += f"{text:>{width}}"
    return line.rstrip()


def _s(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.4f}"


def _of_ratio(ratio: Ratio, samples: Samples) -> str | None:
    over = values(samples.get(ratio.over[0], ()), ratio.over[1])
    under = values(samples.get(ratio.under[0], ()), ratio.under[1])
    if not over or not under:
        return None
    found = statistics.median(over) / statistics.median(under)
    each = [a / b for a, b in zip(over, under, strict=False)]
    sides = f"{ratio.over[0]} / {ratio.under[0]}"
    line = f"{ratio.label:<36}{sides:<16}{found:>9.2f}"
    line += f"{min(each):>8.2f}{max(each):>8.2f}{_of_cpu(ratio, samples):>8}"
    line += f"{_limit(ratio, ratio.must):>8}{_limit(ratio, ratio.aim):>7}"
    if ratio.must is not None:
        good = found <= ratio.must if ratio.most else found >= ratio.must
        line += "  holds" if good else "  DOES NOT HOLD"
    return line.rstrip()


def _of_cpu(ratio: Ratio, samples: Samples) -> str:
    """The same ratio of seconds of processors, where both were measured."""
    over = values(samples.get(ratio.over[0], ()), f"cpu.{ratio.over[1]}")
    under = values(samples.get(ratio.under[0], ()), f"cpu.{ratio.under[1]}")
    if not over or not under:
        return ""
    return f"{statistics.median(over) / statistics.median(under):.2f}"


def _limit(ratio: Ratio, limit: float | None) -> str:
    if limit is None:
        return ""
    return f"{'≤' if ratio.most else '≥'}{limit:g}"


def _stages(samples: Samples) -> list[str]:
    """Where the seconds of ours go."""
    lines = []
    for way, taken in samples.items():
        for field in ("stages", "second_stages"):
            names = {n: 0 for sample in taken for n in sample.get(field, {})}
            if names:
                parts = [
                    f"{name} {statistics.median(values(taken, f'{field}.{name}')):.2f}"
                    for name in names
                ]
                lines.append(f"  {way} {field.replace('_', ' ')}: {', '.join(parts)}")
    return ["", "seconds by stage", *lines] if lines else []
