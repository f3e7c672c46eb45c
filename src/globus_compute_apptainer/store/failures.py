"""Builds that failed lately, so that not everybody tries the same again.

Runs in the endpoint process and in ``gc-apptainer``. One small file for each spec,
shared by all processes; what it says is for :mod:`..images.memory` to judge. A file
that cannot be read counts as absent, and one that cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.owners import owned_name
from globus_compute_apptainer.store.index import hexadecimal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

FORMAT: Final = 1


class Failures:
    """The failures of one platform. Making one touches nothing on disk.

    :param top: the cache's versioned directory
    :param platform: such as ``linux-amd64``
    """

    def __init__(self, top: Path, platform: str) -> None:
        self._folder, self._tmp = top / "failures" / platform, top / "tmp"

    def read(self, spec_digest: str) -> dict[str, Any] | None:
        """What was written of a spec; None if nothing."""
        try:
            told = json.loads(self._path(spec_digest).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        right = isinstance(told, dict) and told.get("format") == FORMAT
        return told if right and told.get("spec_digest") == spec_digest else None

    def write(self, spec_digest: str, told: Mapping[str, Any]) -> None:
        """:param told: plain JSON"""
        path = self._path(spec_digest)
        whole = {**told, "format": FORMAT, "spec_digest": spec_digest}
        new = self._tmp / owned_name("failure")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a failed build is not remembered: %s", error)

    def forget(self, spec_digest: str) -> None:
        """Nothing is known of a spec any more."""
        with contextlib.suppress(OSError):
            self._path(spec_digest).unlink()

    def _path(self, spec_digest: str) -> Path:
        name = hexadecimal(spec_digest)
        return self._folder / name[:2] / f"{name}.json"
