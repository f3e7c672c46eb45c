"""(a): custom-image-builder 1.0.1, as it is on PyPI.

Its own ``funcx_build_image`` is called in place, in a process of its own, as an
endpoint's worker would. What it writes has ``pip install`` for each package and, last,
``globus-compute-endpoint==2.2.0`` and ``globus-compute-common==0.2.0``, which need
Python 3.9; on a newer Python those two lines are left out of its text.

It waits for its pipes the wrong way round: a build that prints more than a pipe holds
never ends, and is given up here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.build.spent import Spent
from bench.build.stage import TIMEOUT_SECONDS, Stage, WayFailedError, call

PACKAGE = "custom-image-builder==1.0.1"
NEEDS = ("jinja2==3.1.2", "markupsafe==2.1.3")
ENDPOINT = ("globus-compute-endpoint==2.2.0", "globus-compute-common==0.2.0")

CHILD = """\
import inspect, json, os, sys, time
from custom_image_builder import image_builder

order = json.load(sys.stdin)
source = inspect.getsource(image_builder.funcx_build_image)
for package in order.pop("left_out"):
    line = f"    pip install {package}\\n"
    assert line in source, line
    source = source.replace(line, "")
names = {}
exec(source, names)
began, used = time.monotonic(), os.times()
log, path, code = names["funcx_build_image"](**order)
seconds = time.monotonic() - began
cpu = sum(os.times()[:4]) - sum(used[:4])
told = {"log": log[-3000:], "path": path, "code": code, "seconds": seconds}
told["cpu"] = cpu
json.dump(told, sys.stdout)
"""


class Peer:
    """The peer, installed where nothing else is."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._library = stage.folder / "peer" / "library"
        self._images = stage.folder / "peer" / "images"

    def build(
        self,
        base: str,
        *,
        pip: Sequence[str] = (),
        apt: Sequence[str] = (),
        endpoint: bool = False,
    ) -> tuple[Spent, Path]:
        """Build an image.

        :param endpoint: leave its two endpoint-install lines in
        :returns: what it took, and the image
        :raises WayFailedError: it does not succeed
        """
        self._install()
        self._images.mkdir(exist_ok=True)
        order: dict[str, Any] = {
            "image_file_name": "image",
            "base_image_type": "docker",
            "base_image": self._stage.base(base),
            "payload_url": None,
            "pip_packages": list(pip),
            "conda_packages": [],
            "apt_packages": list(apt),
            "left_out": [] if endpoint else ENDPOINT,
        }
        told = self._told(order)
        if told["code"] != 0:
            raise WayFailedError(
                f"the peer's build ended with {told['code']}\n{told['log']}"
            )
        return Spent(told["seconds"], told["cpu"]), Path(told["path"])

    def _told(self, order: dict[str, Any]) -> dict[str, Any]:
        env = self._stage.environment(PYTHONPATH=str(self._library))
        with subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=self._images,
            start_new_session=True,
        ) as child:
            try:
                out, err = child.communicate(json.dumps(order), TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                raise WayFailedError("the peer's build does not end") from None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
        if child.returncode != 0:
            raise WayFailedError(f"the peer: {err[-2000:]}")
        return json.loads(out)

    def _install(self) -> None:
        """Without what it depends on but jinja2; its SDK is this environment's."""
        if not self._library.exists():
            new = self._library.with_name("new")
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            call([*argv, "--target", new, PACKAGE, *NEEDS])
            new.rename(self._library)
