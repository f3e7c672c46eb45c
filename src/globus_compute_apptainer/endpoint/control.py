"""Control requests: what a client asks of the endpoint itself.

Runs in the endpoint process. A task whose ``container`` is an object with ``action``
uses no worker, and its function is never called: the engine answers, and the client's
future returns a plain dictionary. What may be asked about obeys the policy, as what may
be run does.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer.endpoint.progress import Progress
from globus_compute_apptainer.endpoint.requests import Requests, Wanted
from globus_compute_apptainer.errors import ContainerError, SpecError
from globus_compute_apptainer.images import ImageService, Ready
from globus_compute_apptainer.spec.refusal import show
from globus_compute_apptainer.store.manifest import Manifest

log = logging.getLogger(__name__)

KEY: Final = "action"
#: What each action may be told, beside itself.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "build": ("spec", "force"),
    "status": ("spec",),
    "log": ("spec", "lines"),
    "list": (),
    "cancel": ("spec",),
}
LINES: Final = 60
MAX_LINES: Final = 1000
MAX_LISTED: Final = 1000
_TAIL_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Control:
    """What is asked.

    :param action: a key of :data:`FIELDS`
    :param spec: as it would be attached to a task; None: the endpoint's default
    :param lines: of a log, the last ones
    :param force: build although the image is there
    """

    action: str
    spec: object = None
    lines: int = LINES
    force: bool = False


def parse(attached: object) -> Control | None:
    """The control request that a client attached; None if it is none.

    :raises SpecError: it is one, and not acceptable
    """
    if not isinstance(attached, Mapping) or KEY not in attached:
        return None
    action = attached[KEY]
    if not isinstance(action, str) or action not in FIELDS:
        raise _invalid(KEY, action, f"one of {', '.join(FIELDS)}", FIELDS)
    for name in attached:
        if name != KEY and name not in FIELDS[action]:
            known = ", ".join(FIELDS[action]) or "nothing else"
            raise _invalid(str(name), attached[name], known, FIELDS[action])
    lines, force = attached.get("lines", LINES), attached.get("force", False)
    if not isinstance(lines, int) or isinstance(lines, bool) or lines < 1:
        raise _invalid("lines", lines, "a whole number from 1 on")
    if not isinstance(force, bool):
        raise _invalid("force", force, "true or false")
    return Control(action, attached.get("spec"), min(lines, MAX_LINES), force)


class Controls:
    """Answers all but ``build``, which waits for an image as tasks do.

    Answers are made in a thread of their own, since they may read many files.
    """

    def __init__(
        self, requests: Requests, images: ImageService, progress: Progress
    ) -> None:
        self._requests, self._images, self._progress = requests, images, progress
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="control")

    def wanted(self, asked: Control) -> Wanted:
        """The image that is asked about.

        :raises SpecError: (or PolicyError) as for a task
        """
        wanted = self._requests.wanted(asked.spec)
        if wanted is None:
            raise _invalid("spec", None, "a spec, a name or a digest")
        return wanted

    def answer(
        self, asked: Control, reply: Callable[[Mapping[str, Any] | Exception], None]
    ) -> None:
        """Call ``reply`` with the answer or an error, soon, in another thread.

        :raises SpecError: (or PolicyError) what is asked about is not acceptable
        """
        wanted = None if asked.action == "list" else self.wanted(asked)

        def work() -> None:
            try:
                reply(self._answer(asked, wanted))
            except Exception as error:
                if not isinstance(error, ContainerError):
                    log.exception("a control request failed")
                reply(error)

        self._thread.submit(work)

    def close(self) -> None:
        """Block until what was asked is answered. Idempotent."""
        self._thread.shutdown(wait=True)

    def _answer(self, asked: Control, wanted: Wanted | None) -> dict[str, Any]:
        if wanted is None:
            return self._list()
        digest = wanted.image.digest
        if asked.action == "log":
            return {"spec_digest": digest, **self._log(digest, asked.lines)}
        if asked.action == "cancel":
            return {"spec_digest": digest, "cancelled": self._images.cancel(digest)}
        return {"spec_digest": digest, **self._status(digest)}

    def _status(self, digest: str) -> dict[str, Any]:
        ready, build = self._images.cached(digest), self._progress.of(digest)
        status: dict[str, Any] = {
            "state": "absent" if ready is None else "ready",
            "waiting_tasks": 0,
            "image": None if ready is None else summary(ready.image.manifest),
        }
        standing = self._images.standing(digest)
        if standing is not None:
            status["state"], status["waiting_tasks"] = standing
        if build is None or bool(standing) == build.ended:
            return status
        if not build.ended:
            return {**status, "stage": build.stage, "seconds": build.seconds}
        if build.error and ready is None:
            what = {"state": "failed", "error": build.error, "stage": build.stage}
            return {**status, **what, "seconds": build.seconds}
        return status

    def _log(self, digest: str, lines: int) -> dict[str, Any]:
        build = self._progress.of(digest)
        if build is not None and build.lines:
            return {"lines": list(build.lines[-lines:])}
        ready = self._images.cached(digest)
        path = "" if ready is None else ready.image.manifest.log
        return {"lines": _tail(Path(path), lines) if path else []}

    def _list(self) -> dict[str, Any]:
        """Images that a task of this client's could have, the newest first."""
        found = [
            image.manifest
            for image in self._images.stored()
            if self._requests.may_have(image.manifest)
        ]
        found.sort(key=lambda manifest: manifest.created, reverse=True)
        return {
            "images": [summary(manifest) for manifest in found[:MAX_LISTED]],
            "names": self._requests.names(),
            "left_out": max(0, len(found) - MAX_LISTED),
        }


def built(ready: Ready) -> dict[str, Any]:
    """The answer to ``build``."""
    return {
        "spec_digest": ready.image.manifest.spec_digest,
        "state": "ready",
        "cache": ready.cache,
        "build_seconds": ready.seconds,
        "image": summary(ready.image.manifest),
    }


def summary(manifest: Manifest) -> dict[str, Any]:
    """What a client is told of an image: no paths, and nothing of how it was built."""
    return {
        "spec_digest": manifest.spec_digest,
        "image_digest": manifest.image_digest,
        "name": manifest.name,
        "base": manifest.base,
        "base_digest": manifest.base_digest,
        "python_version": manifest.python_version,
        "platform": manifest.platform,
        "size": manifest.size,
        "created": manifest.created,
        "strategy": manifest.strategy,
    }


def _tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _invalid(
    field: str, value: object, expected: str, names: Iterable[str] = ()
) -> SpecError:
    meant = str(value) if field == KEY else field
    near = difflib.get_close_matches(meant[:80], list(names), 1)
    return SpecError(
        f"{field}: not acceptable in a control request",
        hint=f"expected: {expected}",
        field=field,
        value=show(value if isinstance(value, (str, int)) else type(value).__name__),
        nearest=near[0] if near else "",
    )
