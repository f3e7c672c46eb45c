"""One container as the keeper sees it: an ``apptainer exec`` and its zygote inside.

Runs in the keeper. Whatever is started there stays below the keeper in the tree of
processes, which is how it is found and ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.worker.inside import activity, messages, processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAIL_BYTES: Final = 16384  # which fit in a message, however they are written


class Zygote:
    """A container that starts, serves, or retires.

    :param key: its run identity
    :param launch: ``argv``, ``env`` and ``folder`` of the program to start
    :param log: file for what Apptainer and the zygote print
    :param held: descriptors to close when it has ended
    :raises OSError: the program cannot be started
    """

    def __init__(
        self, key: str, launch: Mapping[str, Any], log: str, held: Sequence[int] = ()
    ) -> None:
        self.key, self.log, self._held = key, log, tuple(held)
        self.hello: dict[str, Any] | None = None
        self.noise = ""  # printed as it started; for one worker to log
        self.retiring = False
        self.started = self.used = time.monotonic()
        self.control, theirs = messages.pair()
        memory = os.memfd_create("gc-apptainer")
        try:
            os.ftruncate(memory, activity.SIZE)
            self._memory = activity.mapped(memory)
            messages.send(self.control, {"kind": "begin"}, [memory])
            with open(log, "wb") as output:
                self._process = subprocess.Popen(
                    launch["argv"],
                    env=launch["env"],
                    cwd=launch["folder"],
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError:
            self.control.close()
            raise
        finally:
            os.close(memory)
            theirs.close()

    @property
    def pid(self) -> int:
        """Of the program that was started."""
        return self._process.pid

    @property
    def family(self) -> set[int]:
        """That program, and all that is below it."""
        return {self.pid} | processes.descendants({self.pid})

    def serve(self, traits: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Give it a worker's connection; if it is gone, the worker will see."""
        self.used = time.monotonic()
        with contextlib.suppress(OSError):
            message = {"kind": "serve", "traits": traits}
            messages.send(self.control, message, descriptors)

    def idle_since(self) -> float | None:
        """When the last task ended, in seconds of the monotonic clock; None while
        one runs."""
        slots = activity.slots(self._memory)
        return None if activity.BUSY in slots else max([self.used, *slots])

    def tell(self, kind: str) -> None:
        """``retire``: end when tasks that were given have ended; ``end``: end now."""
        self.retiring = True
        with contextlib.suppress(OSError):
            messages.send(self.control, {"kind": kind})

    def kill(self) -> None:
        """End everything of it by force; it has yet to be reaped."""
        processes.kill_all(lambda: self.family - {self.pid})
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def tail(self) -> str:
        """The end of what was printed."""
        with contextlib.suppress(OSError), open(self.log, "rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            return log.read().decode("utf-8", "replace")
        return ""

    def ended(self, status: int) -> int:
        """Take note that the program has ended and was reaped; its return code."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.control.close()
        self._memory.close()
        messages.close(self._held)
        with contextlib.suppress(OSError):
            os.unlink(self.log)
        return self._process.returncode
