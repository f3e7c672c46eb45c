"""The endpoint's own processes: configured, started and stopped as an admin does it.

Runs in the test process; everything here goes through ``globus-compute-endpoint``.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import processes, settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "loopback"
CONFIGURE_SECONDS = 60
STOP_SECONDS = 40
ORPHAN_SECONDS = 15
TAIL_LINES = 60


class BedError(RuntimeError):
    """The endpoint could not be configured or did not come up."""


class LeftBehind(AssertionError):
    """Processes of the endpoint outlived its orderly stop; they were killed."""

    def __init__(self, left: Mapping[int, str]) -> None:
        self.left = dict(left)
        lines = "\n".join(f"  {pid}: {command}" for pid, command in left.items())
        super().__init__(f"processes outlived the endpoint:\n{lines}")


@dataclass(frozen=True)
class Installation:
    """Where the endpoint's program comes from, where its files go, and its mark."""

    venv_bin: Path
    user_dir: Path
    mark: str
    environment: Mapping[str, str]

    @property
    def endpoint_dir(self) -> Path:
        """The core endpoint's folder: its configuration, template and log."""
        return self.user_dir / NAME

    @property
    def output(self) -> Path:
        """What the core endpoint prints before its log is set up."""
        return self.user_dir.with_name("core-output.log")

    def logs(self) -> list[Path]:
        """Logs of the core endpoint and of every user endpoint."""
        return [self.output, *sorted(self.user_dir.glob("*/endpoint.log"))]

    def log_tails(self, lines: int = TAIL_LINES) -> str:
        """The ends of all logs, for the report of a failure."""
        return "\n".join(f"== {log}\n{_tail(log, lines)}" for log in self.logs())

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.venv_bin / "globus-compute-endpoint"), *arguments]

    def configure(
        self,
        template: str,
        schema: Path,
        user_environment: Mapping[str, str],
        config: str,
    ) -> None:
        """Run the endpoint's own ``configure`` with these files."""
        files = self.user_dir.with_name("configured-from")
        files.mkdir(parents=True)
        template_file = files / settings.TEMPLATE
        template_file.write_text(template)
        environment = files / settings.USER_ENVIRONMENT
        environment.write_text(json.dumps(dict(user_environment), indent=1))
        command = self._command(
            *("configure", NAME, "--multi-user", "false"),
            *("--template-config", str(template_file)),
            *("--schema-config", str(schema)),
            *("--user-env-config", str(environment)),
        )
        done = subprocess.run(
            command,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=CONFIGURE_SECONDS,
        )
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}"
            raise BedError(f"configure failed ({done.returncode}):\n{said}")
        (self.endpoint_dir / "config.yaml").write_text(config)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the core endpoint, in its own session: it ends by killing its group."""
        with self.output.open("ab") as output:
            return subprocess.Popen(
                self._command("start", NAME),
                env=dict(self.environment),
                cwd=self.user_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """All living processes that the endpoint started, with their command lines."""
        return processes.marked(self.mark)

    def stop(self, core: subprocess.Popen[bytes]) -> None:
        """Stop in order; raises LeftBehind for what had to be killed instead."""
        core.terminate()
        with suppress(subprocess.TimeoutExpired):  # then it is among those left
            core.wait(STOP_SECONDS)
        left = processes.wait_gone(self.processes, ORPHAN_SECONDS)
        if left:
            processes.kill(left)
            core.wait(STOP_SECONDS)
            raise LeftBehind(left)


def _tail(log: Path, lines: int) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"
