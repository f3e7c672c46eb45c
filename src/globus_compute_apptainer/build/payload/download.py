"""Fetching one file over HTTP, with limits.

Runs in the endpoint process, in the thread of a build. Sends no credentials of any
kind. A server spoken to over TLS leads nowhere without TLS; where else it redirects
is its own business, as it is with the forges' archives.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from globus_compute_apptainer.build.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

TIMEOUT_SECONDS: Final = (10.0, 30.0)
"""To connect, and between two pieces of the answer."""

ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = 0.5
"""Before a second attempt; before a third, twice that."""

MAX_REDIRECTS: Final = 10
PIECE_BYTES: Final = 256 * 1024
TOLD_BYTES: Final = 4 * 1024**2
"""Between two events of progress."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({408, 425, 429})


class _Interrupted(Exception):  # noqa: N818 - caught here, always
    """Something that may go better the next time."""


@dataclass(frozen=True)
class Downloaded:
    """What was fetched: its size in bytes, and its SHA-256 in hex."""

    size: int
    sha256: str


def download(
    job: Job,
    url: str,
    target: Path,
    *,
    limit: int,
    timeout: tuple[float, float] = TIMEOUT_SECONDS,
) -> Downloaded:
    """Write what ``url`` leads to, to a new file.

    :param limit: bytes that it may have
    :raises BuildError: there is no such file (``payload-not-found``), the server does
        not give it (``payload-unreachable``), or it is larger (``payload-too-large``)
    """
    with requests.Session() as session:
        session.trust_env = False  # neither .netrc nor this process's variables
        session.verify = str(job.site.ca_bundle) if job.site.ca_bundle else True
        one = _Download(job, session, limit, timeout)
        for attempt in range(1, ATTEMPTS):
            with contextlib.suppress(_Interrupted):
                return one.run(url, target)
            job.cancel.wait(PAUSE_SECONDS * attempt)
            job.check()
        try:
            return one.run(url, target)
        except _Interrupted as error:
            raise one.unreachable(url, str(error)) from error


class _Download:
    def __init__(
        self,
        job: Job,
        session: requests.Session,
        limit: int,
        timeout: tuple[float, float],
    ) -> None:
        self._job, self._session = job, session
        self._limit, self._timeout = limit, timeout
        self._proxies = Proxies.of({**job.site.variables, **job.site.caller})

    def run(self, url: str, target: Path) -> Downloaded:
        with self._answer(url) as answer:
            self._check(url, answer)
            total = _length(answer)
            if total is not None and total > self._limit:
                raise too_large(self._job, total, self._limit)
            digest, size, told = hashlib.sha256(), 0, 0
            with target.open("wb") as file:
                for piece in self._pieces(answer):
                    self._job.check()
                    size += len(piece)
                    if size > self._limit:
                        raise too_large(self._job, None, self._limit)
                    digest.update(piece)
                    file.write(piece)
                    if size - told >= TOLD_BYTES:
                        told = size
                        self._job.transcript.progress(size, total)
        if total is not None and size != total:
            raise _Interrupted(f"the answer ended after {size} of {total} bytes")
        self._job.transcript.progress(size, size)
        return Downloaded(size, digest.hexdigest())

    def _answer(self, url: str) -> requests.Response:
        tls = urlsplit(url).scheme == "https"
        for _ in range(MAX_REDIRECTS):
            answer = self._sent(url)
            if answer.status_code not in _REDIRECTS:
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            answer.close()
            scheme = urlsplit(target).scheme
            if scheme not in ("https",) if tls else scheme not in ("http", "https"):
                raise self.unreachable(url, "it redirects to a place without TLS")
            url = target
        raise self.unreachable(url, "it redirects in circles")

    def _sent(self, url: str) -> requests.Response:
        self._job.check()
        left = max(
            0.01, self._job.left()
        )  # the build's own clock is not looked at here
        connect, read = (min(left, one) for one in self._timeout)
        try:
            return self._session.get(
                url,
                headers={"Accept-Encoding": "identity"},
                allow_redirects=False,
                stream=True,
                timeout=(connect, read),
                proxies=self._proxies.for_url(url),
            )
        except requests.exceptions.SSLError as error:
            self._job.transcript.note(f"{_shown(url)}: {error}")
            hint = "name the site's CA bundle as `build.ca_bundle`"
            reason = "its certificate is not trusted here, or it speaks no TLS"
            raise self.unreachable(url, reason, hint) from error
        except (requests.RequestException, UnicodeError) as error:
            raise _Interrupted(_words(error)) from error

    def _check(self, url: str, answer: requests.Response) -> None:
        status = answer.status_code
        if status == 200:
            return
        if status in _BUSY or status >= 500:
            raise _Interrupted(f"it answers {status}")
        if status in {401, 403, 404, 410}:
            hint = "check `payload_url`"
            if status in {401, 403}:
                hint += "; it must be readable without a login"
            raise self._job.error(
                f"there is no payload at {_shown(url)}: the server answers {status}",
                code="payload-not-found",
                hint=hint,
            )
        raise self.unreachable(url, f"it answers {status}")

    def _pieces(self, answer: requests.Response) -> Iterator[bytes]:
        """As they come, so that the clock and cancelling are looked at in between."""
        read = getattr(answer.raw, "read1", None)
        try:
            while True:
                piece = (
                    read(PIECE_BYTES, decode_content=True)
                    if read
                    else answer.raw.read(8192, decode_content=True)
                )
                if not piece:
                    return
                yield piece
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Interrupted(_words(error)) from error

    def unreachable(self, url: str, how: str, hint: str = "") -> BuildError:
        return self._job.error(
            f"the payload cannot be fetched from {urlsplit(url).netloc}: {how}",
            code="payload-unreachable",
            hint=hint or "check `payload_url` and this site's proxy settings",
        )


def too_large(job: Job, size: int | None, limit: int) -> BuildError:
    """:param size: bytes; None where only so much is known that it is too large"""
    says = f"has {size / 1e6:.0f} MB, more than" if size else "is larger than"
    return job.error(
        f"the payload {says} the {limit / 1e6:.0f} MB that this endpoint allows",
        code="payload-too-large",
        hint="keep data out of the payload, and read it from a file system or by URL",
    )


def _length(answer: requests.Response) -> int | None:
    written = answer.headers.get("Content-Length", "")
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    return int(written) if written.isdigit() and not encoded else None


def _shown(url: str) -> str:
    """Without a query, which may hold what nobody should read."""
    return url.partition("?")[0]


def _words(error: Exception) -> str:
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "it does not answer"
    if isinstance(
        error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)
    ):
        return "it stopped answering"
    if "NameResolution" in str(error) or "Name or service" in str(error):
        return "its name is not known here"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "it cannot be connected to"
    return type(error).__name__
