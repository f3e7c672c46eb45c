"""Packages that all have wheels: installed by uv on the host.

Runs in the endpoint process. No container is started, and no code of packages runs,
so uv's cache can be shared by all builds of an endpoint and its files be hard-linked
into the environment. Images get a packed copy; nothing in them ever sees the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globus_compute_apptainer.build.python import resolution, standins, uv, venv
from globus_compute_apptainer.build.python.uv import COMPILE, INSTALL, Follower, HostUv

if TYPE_CHECKING:
    from globus_compute_apptainer.build.inventory import Python
    from globus_compute_apptainer.build.python.resolution import Pin
    from globus_compute_apptainer.errors import BuildError


class NoWheelError(Exception):
    """Something has no wheel for the image; the text names it."""


@dataclass(frozen=True)
class Wheels:
    """The way without a container.

    :param platform: of the image, as uv names it
    :param notes: remarks on what was resolved
    """

    host: HostUv
    python: Python
    platform: str
    notes: list[str] = field(default_factory=list)

    name = "wheels"

    @property
    def root(self) -> Path:
        """Of the tree that is to become the layer."""
        return self.host.work / "root"

    def made_of(self) -> Mapping[str, Any]:
        """What decides the content, beside the packages: not what is below."""
        python = self.python
        plain = python.prefix == python.base_prefix
        sites = None if plain else list(python.site_packages)
        return {
            "platform": self.platform,
            "python": [venv.interpreter(python), python.version, sites],
        }

    def resolve(
        self, requirements: Sequence[str], constraints: Sequence[str] = ()
    ) -> tuple[Pin, ...]:
        """Everything that the requirements need, with what the base has of it.

        :raises NoWheelError: something must be built from sources
        :raises BuildError: they cannot be satisfied
        """
        if needed := resolution.sources(requirements):
            raise NoWheelError(", ".join(needed))
        wanted, lock = self.host.work / "wanted.in", self.host.work / "lock.txt"
        wanted.write_text("".join(f"{line}\n" for line in requirements), "utf-8")
        lock.write_text(standins.preferences(self.python.packages), "utf-8")
        links = uv.stand_in_folder(self.host.packages, self.python.packages)
        argv = [*COMPILE, str(wanted), "--output-file", str(lock)]
        if constraints:
            limits = self.host.work / "limits.in"
            limits.write_text("".join(f"{line}\n" for line in constraints), "utf-8")
            argv += ["--constraint", str(limits)]
        argv += ["--python", str(venv.host_python())]
        follower = Follower(self.host.job, held=True)
        if not self.host([*argv, *self._options], follower, links):
            raise self._failure(follower)
        follower.release()
        self.notes.extend(resolution.yanked(follower.said))
        return resolution.parse_pins(lock.read_text("utf-8"))

    def install(self, pins: Sequence[Pin], env: Path) -> None:
        """Fill ``env``, which is then an environment of the image's Python.

        :raises NoWheelError: one must be built from sources
        :raises BuildError: one cannot be had, or is not what its hash says
        """
        lock = self.host.work / "install.txt"
        lock.write_text("".join(f"{pin.line}\n" for pin in pins), "utf-8")
        argv = [*INSTALL, "--python", str(venv.lay_host(env))]
        argv += [*uv.hash_options(pins), "--requirement", str(lock), *self._options]
        # What these are, is settled: where all files are in the cache, no index has
        # anything to add, but would be asked.
        follower = Follower(self.host.job, len(pins), held=True)
        if not self.host([*argv, "--offline"], follower):
            follower = Follower(self.host.job, len(pins))
            if not self.host(argv, follower):
                raise self._failure(follower)
        follower.release()
        venv.turn(env, self.python)

    @property
    def _options(self) -> list[str]:
        options = ["--python-version", self.python.version]
        return [*options, "--python-platform", self.platform, "--only-binary", ":all:"]

    def _failure(self, follower: Follower) -> NoWheelError | BuildError:
        lacking = resolution.lacks_wheels(follower.said)
        if lacking is not None:
            return NoWheelError(lacking)
        if follower.held:
            follower.release()
        return self.host.job.failed()
