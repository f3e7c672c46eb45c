"""The ways to get an image, by name; each gives one sample: what was measured of it.

A sample is plain data: ``ready`` and ``complete`` in seconds, ``size`` and
``bytecode`` in bytes, ``first`` and ``later`` with the import times of the image as it
was at ready and as it was when complete (15 s after ready at the latest), ``versions``,
for ours ``stages``, and in ``cpu`` the seconds of processors, by the same names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.build import channel, imports, ours
from bench.build.cases import ENDPOINT, Case
from bench.build.flat import Flat
from bench.build.peer import Peer
from bench.build.spent import Spent, Watch
from bench.build.stage import Stage, call

PATIENCE_SECONDS = 15.0
Sample = dict[str, Any]


class Ways:
    """All ways, on one stage."""

    def __init__(self, stage: Stage, python: str = "3.11") -> None:
        self._stage, self._python = stage, python
        self._primed: set[str] = set()

    @cached_property
    def _peer(self) -> Peer:
        return Peer(self._stage)

    @cached_property
    def _flat(self) -> Flat:
        return Flat(self._stage)

    @cached_property
    def _cold(self) -> ours.Ours:
        return ours.Ours(self._stage, "ours-cold")

    @cached_property
    def _warm(self) -> ours.Ours:
        return ours.Ours(self._stage, "ours-warm")

    @cached_property
    def table(self) -> dict[str, tuple[str, Callable[[Case], Sample]]]:
        """Way → what it is, and how to take a sample of it."""
        return {
            "a39": (
                "(a) the peer as published: Python 3.9, endpoint",
                self.a_published,
            ),
            "a": ("(a) the peer without its endpoint lines", self.a),
            "a-apt": ("(a) the peer, base with lists and Assume-Yes", self.a_apt),
            "b": ("(b) tuned flat build, wheels warm", self.b),
            "b-nobytecode": ("(b) the same, no bytecode", self.b_no_bytecode),
            "b-cold": ("(b) the same, wheels cold", self.b_cold),
            "b-second": ("(b) second spec", self.b_second),
            "c": ("(c) ours, wheels cold", self.c),
            "d": ("(d) ours, wheels warm", self.d),
            "d39": ("(d) ours, Python 3.9, endpoint", self.d_published),
            "d-apt": ("(d) ours", self.d_apt),
            "d-apt-first": ("(d) ours, first apt on a base", self.d_apt_unlisted),
            "conda-cold": ("(c) ours, packages cold", self.conda_cold),
            "conda-warm": ("(d) ours, packages warm", self.conda_warm),
            "pull": ("apptainer pull, empty cache", self.pull),
            "base": ("ours, empty cache", self.base),
        }

    # (a)

    def a_published(self, case: Case) -> Sample:
        built = self._peer.build("3.9", pip=case.spec["pip"], endpoint=True)
        return self._seen(case, *built)

    def a(self, case: Case) -> Sample:
        return self._seen(case, *self._peer.build(self._python, pip=case.spec["pip"]))

    def a_apt(self, case: Case) -> Sample:
        base = f"{self._python}-apt"
        return self._seen(case, *self._peer.build(base, apt=case.spec["apt"]))

    # (b)

    def b(self, case: Case) -> Sample:
        return self._by_flat(case)

    def b_no_bytecode(self, case: Case) -> Sample:
        return self._by_flat(case, bytecode=False)

    def b_cold(self, case: Case) -> Sample:
        return self._by_flat(case, cold=True)

    def b_second(self, case: Case) -> Sample:
        return self._seen(case, *self._flat.build(self._python, **(case.second or {})))

    def _by_flat(self, case: Case, **options: bool) -> Sample:
        mark = f"flat {case.name}"
        if mark not in self._primed and case.spec.get("pip"):
            self._flat.build(self._python, **case.spec)
            self._primed.add(mark)
        return self._seen(case, *self._flat.build(self._python, **case.spec, **options))

    # (c) and (d)

    def c(self, case: Case) -> Sample:
        self._prime(self._cold, self._python)
        base = self._stage.base(self._python)
        return self._made(case, self._cold.build(base, case.spec, ours.COLD))

    def d(self, case: Case) -> Sample:
        base = self._stage.base(self._python)
        if case.prime:
            self._prime(self._warm, self._python, case.prime)
        made = self._warm.build(base, case.spec, ours.WARM)
        sample = self._made(case, made)
        again = self._warm.build(base, case.spec, ours.LAYERS_KEPT)
        hit = self._warm.hit(base, case.spec)
        return {**sample, "layer_hit": again.ready.wall, "image_hit": hit}

    def d_published(self, case: Case) -> Sample:
        base = self._stage.base("3.9")
        pip = case.spec["pip"]
        prime = {"pip": [*case.prime["pip"], *ENDPOINT]} if case.prime else {}
        self._prime(self._warm, "3.9", prime)
        spec = {"pip": [*pip, *ENDPOINT]}
        return self._made(case, self._warm.build(base, spec, ours.WARM))

    def d_apt(self, case: Case) -> Sample:
        base = self._stage.base(self._python)
        self._prime(self._warm, self._python, {"pip": ["attrs", "six"]})
        made = self._warm.build(base, case.spec, ours.WARM)
        sample = self._made(case, made)
        second = self._warm.build(base, case.second or {}, ours.LAYERS_KEPT)
        self._made(case, second)
        times = _times(second=second.ready, second_complete=second.complete)
        return {
            **sample,
            **times,
            "cpu": {**sample["cpu"], **times["cpu"]},
            "second_stages": second.stages,
        }

    def d_apt_unlisted(self, case: Case) -> Sample:
        """As the first apt layer over a base that there ever was."""
        base = self._stage.base(self._python)
        self._prime(self._warm, self._python, {"pip": ["attrs", "six"]})
        self._warm.forget(ours.WARM)
        self._warm.forget_lists()
        return self._made(case, self._warm.build(base, case.spec, ours.WARM))

    def _prime(
        self, way: ours.Ours, python: str, spec: dict[str, Any] | None = None
    ) -> None:
        """Have the base, and the packages of ``spec``, in a cache; once."""
        mark = repr((id(way), python, spec))
        if mark not in self._primed:
            own = spec or {"env": {"PRIME": "1"}}
            way.build(self._stage.base(python), own, ours.LAYERS_KEPT)
            self._primed.add(mark)

    # conda

    def conda_cold(self, case: Case) -> Sample:
        self._prime(self._cold, self._python)
        base = self._stage.base(self._python)
        spec = channel.spec()
        return self._made(case, self._cold.build(base, spec, ours.COLD))

    def conda_warm(self, case: Case) -> Sample:
        base = self._stage.base(self._python)
        prime = channel.spec(channel.OTHER)
        self._prime(self._warm, self._python, prime)
        spec = channel.spec()
        return self._made(case, self._warm.build(base, spec, ours.WARM))

    # cold base

    def pull(self, case: Case) -> Sample:
        cache = "pull-cache"
        shutil.rmtree(self._stage.folder / cache, ignore_errors=True)
        image = self._stage.folder / "pulled.sif"
        reference = f"docker://{self._stage.base('plain')}"
        argv = [self._stage.apptainer.path, "pull", "--force", image, reference]
        env = self._stage.environment(cache)
        watch = Watch()
        call(argv, env=env)
        return self._seen(case, watch.read(), image)

    def base(self, case: Case) -> Sample:
        spec = {"env": {"NEW": "1"}}
        base = self._stage.base("plain")
        taken = self._cold.take_in(base)
        os.sync()
        made = self._cold.build(base, spec, ())
        self._primed.clear()
        sample, times = self._made(case, made), _times(base=taken)
        return {**sample, **times, "cpu": {**sample["cpu"], **times["cpu"]}}

    # what is looked at, outside the timed part

    def _seen(self, case: Case, spent: Spent, image: Path) -> Sample:
        sample: Sample = {
            **_times(ready=spent, complete=spent),
            "size": image.stat().st_size,
            "bytecode": 0,
        }
        return {**sample, **self._looked(case, image)}

    def _made(self, case: Case, made: ours.Made) -> Sample:
        overlay = made.bytecode
        python = made.image.manifest.python or "python3"
        sample: Sample = {
            **_times(ready=made.ready, complete=made.complete),
            "size": made.image.path.stat().st_size,
            "bytecode": overlay.stat().st_size if overlay else 0,
            "stages": made.stages,
            "strategy": made.image.manifest.strategy,
            **self._looked(case, made.image.path, python),
        }
        in_time = overlay and made.complete.wall - made.ready.wall <= PATIENCE_SECONDS
        if case.modules:
            sample["later"] = sample["first"]
        if case.modules and in_time:
            found = self._looked(case, made.image.path, python, overlay)
            sample["later"] = found["first"]
        return sample

    def _looked(
        self,
        case: Case,
        image: Path,
        python: str = "python3",
        bytecode: Path | None = None,
    ) -> Sample:
        if case.command:
            imports.check(self._stage, image, case.command)
        if not case.modules:
            return {}
        found = asdict(
            imports.measure(
                self._stage,
                image,
                case.modules,
                case.packages,
                python=python,
                bytecode=bytecode,
            )
        )
        versions = found.pop("versions")
        return {"first": found, "versions": versions}


def _times(**spent: Spent) -> Sample:
    cpu = {name: one.cpu for name, one in spent.items()}
    return {**{name: one.wall for name, one in spent.items()}, "cpu": cpu}
