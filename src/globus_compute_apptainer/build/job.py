"""One build in progress: its tools, its place, its time, and how it fails.

Runs in the endpoint process, in the thread of the build. Every step of a build gets
the job and does all it does through it, so that output is logged, told and kept for
errors in one way, deadlines hold, and failures are diagnosed alike.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import Apptainer, Completed, run
from globus_compute_apptainer.build.diagnose import Diagnosis, diagnose
from globus_compute_apptainer.errors import BuildError

if TYPE_CHECKING:
    from globus_compute_apptainer.build.site import SiteAccess
    from globus_compute_apptainer.build.transcript import Transcript
    from globus_compute_apptainer.config import BuildConfig
    from globus_compute_apptainer.spec.model import ImageSpec
    from globus_compute_apptainer.spec.policy import Policy

HINTS: Final[Mapping[str, str]] = {
    "no-python": "choose a base image with Python, such as python:3.11-slim, or add "
    '"python3" to `apt`',
    "python-mismatch": "leave `python` out, or choose a base image that has it",
    "no-apt": "`apt` needs a base image of the Debian family",
}


@dataclass(frozen=True)
class Job:
    """What the steps of one build share.

    :param image: what is being built
    :param scratch: a private directory on the fastest place with room, removed with
        all in it when the build ends
    :param log: path of the build's log, for errors
    :param cancel: ends the build once set
    :param policy: what a payload's own files may ask for; None: everything
    :param fresh: whether what was resolved before (tags, layers) counts as too old
    """

    image: ImageSpec
    apptainer: Apptainer
    config: BuildConfig
    site: SiteAccess
    scratch: Path
    log: Path
    transcript: Transcript
    cancel: threading.Event
    policy: Policy | None = None
    fresh: bool = False
    clock: Callable[[], float] = time.monotonic
    deadline: float = field(default=0.0)
    _beside: list[threading.Thread] = field(default_factory=list)

    @property
    def machine(self) -> str:
        """This machine's kind, as ``uname -m`` names it."""
        return platform.machine()

    def left(self) -> float:
        """Seconds that the build may still take, at least 0."""
        return max(0.0, self.deadline - self.clock())

    def beside(self, action: Callable[[], object], name: str) -> None:
        """Do what no step waits for in a thread; :meth:`settle` does. At once, where no
        thread is to be had."""
        thread = threading.Thread(target=action, name=name)
        try:
            thread.start()
        except RuntimeError:
            action()
        else:
            self._beside.append(thread)

    def settle(self) -> None:
        """Block until all is done that was begun beside."""
        while self._beside:
            self._beside.pop().join()

    def enter(self, stage: str, command: str = "") -> None:
        """A stage begins."""
        self.transcript.enter(stage, command)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        shown: str = "",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program to its good end; its output is logged.

        :param shown: how errors name the command; by default the arguments
        :param on_line: gets the output instead of the transcript
        :raises BuildError: it failed (diagnosed from its output), took too long
            (``build-timeout``) or was cancelled (``build-cancelled``)
        """
        ended = self.attempt(argv, env=env, cwd=cwd, shown=shown, on_line=on_line)
        if not ended.ok:
            raise self.failed()
        return ended

    def attempt(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        shown: str = "",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """As :meth:`run`, but a program that fails is the caller's to judge."""
        self.check()
        self.transcript.begin(shown or " ".join(argv))
        ended = run(
            argv,
            env=env,
            cwd=cwd,
            timeout=self.left(),
            on_line=on_line or self.transcript.line,
            cancel=self.cancel,
        )
        self._in_time(ended)
        return ended

    def judge(self, ended: Completed) -> None:
        """:raises BuildError: unless a program that was run elsewhere ended well"""
        self._in_time(ended)
        if not ended.ok:
            raise self.failed()

    def _in_time(self, ended: Completed) -> None:
        if ended.cancelled:
            raise self.cancelled()
        if ended.timed_out:
            raise self.timed_out()

    def check(self) -> None:
        """For long steps of our own.

        :raises BuildError: the build was cancelled, or its time is up
        """
        if self.cancel.is_set():
            raise self.cancelled()
        if not self.left():
            raise self.timed_out()

    def cancelled(self) -> BuildError:
        return self.error("the build was cancelled", code="build-cancelled")

    def timed_out(self) -> BuildError:
        return self.error(
            f"the build took longer than {self.config.timeout:g} s",
            code="build-timeout",
            hint="raise `build.timeout`, or ask for less",
        )

    def failed(self) -> BuildError:
        """Why the program that ran last failed: what it said itself, or what its
        output shows."""
        said = self.transcript.failure
        if said is not None:
            return self.error(
                f"the image cannot be built: {said.message}",
                code=said.code,
                stage=said.stage,
            )
        tail = self.transcript.tail
        return self.diagnosed(diagnose(self.transcript.stage, tail, self.image.agent))

    def diagnosed(self, cause: Diagnosis) -> BuildError:
        because = f": {cause.message}" if cause.message else ""
        return self.error(
            f"building the image failed in stage {self.transcript.stage!r}{because}",
            code=cause.code,
            hint=cause.hint,
        )

    def error(
        self,
        message: str,
        *,
        code: str = "build-failed",
        hint: str = "",
        stage: str | None = None,
    ) -> BuildError:
        """An error of this build: with stage, command, last lines and log."""
        return BuildError(
            message,
            hint=hint or HINTS.get(code, ""),
            log=str(self.log),
            code=code,
            stage=self.transcript.stage if stage is None else stage,
            command=self.transcript.command,
            tail=tuple(self.transcript.tail),
        )
