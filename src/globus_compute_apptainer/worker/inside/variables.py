"""The variables that a child has from its worker.

Runs in the child. The worker sends them when they have changed; a task may change
them, too, and the next one finds them as they should be.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional


class Variables:
    """Sets what is not as it should be: to set all of them for every task would cost
    more than a small task does."""

    def __init__(self) -> None:
        self._sent: Dict[str, str] = {}
        self._lent: Dict[str, str] = {}
        self._about: Dict[str, str] = {}
        self._left: Optional[Dict[Any, Any]] = None  # how they were after that

    def lend(self, sent: Dict[str, str], task: Dict[str, str]) -> None:
        """Set the variables of a task, and unset those of the one before.

        :param sent: the worker's; the same object as before where it sent none anew
        :param task: about this task
        """
        here = getattr(os.environ, "_data", None)
        as_left = here is not None and here == self._left and sent is self._sent
        if as_left and self._about.keys() == task.keys():
            for name, value in task.items():  # a third of the time of `update`
                os.environ[name] = value
        else:
            for name in self._lent:
                os.environ.pop(name, None)
            wanted = {**sent, **task}
            if not os.path.isdir(wanted.get("TMPDIR", "/")):
                del wanted["TMPDIR"]
            os.environ.update(wanted)
            self._sent, self._lent = sent, wanted
        self._about, self._left = task, None if here is None else dict(here)

    def __contains__(self, name: str) -> bool:
        """Whether the worker has it."""
        return name in self._sent
