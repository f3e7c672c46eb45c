"""Asking a container registry over HTTP: logins, redirects, patience, and its errors.

Runs in the endpoint process, in the thread of a build. :mod:`.registry` knows what to
ask for.

Guaranteed: credentials go to the registry they are configured for (and to the token
service that it names), never to where it redirects; a registry spoken to over TLS
leads nowhere without TLS.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import requests

from globus_compute_apptainer.build.bases import credentials
from globus_compute_apptainer.build.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.errors import BuildError

TIMEOUT_SECONDS: Final = (10.0, 30.0)
"""To connect, and between two pieces of an answer."""

ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = 0.5
"""Before a second attempt; then twice that."""

MAX_PAUSE_SECONDS: Final = 30.0
"""A server that asks for a longer pause than this is not asked again."""

MOMENT_SECONDS: Final = 0.1
"""By which a wait ends after a build's time is up, so that this is why it failed."""

MAX_BODY_BYTES: Final = 4 * 1024**2
"""Of a manifest or a token; registries take no larger ones."""

MAX_REDIRECTS: Final = 5
CHUNK_BYTES: Final = 64 * 1024
"""Small enough that a slow answer is noticed between two of them."""

TOO_OFTEN: Final = 429
SERVER_TROUBLE: Final = 500

_ACCEPT: Final = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_PARAMETER: Final = re.compile(r'([A-Za-z]+)="([^"]*)"')


class Wire:
    """The way to one registry, for one build. A context manager.

    :param http: whether it is spoken to without TLS
    :param timeout: see :data:`TIMEOUT_SECONDS`
    """

    def __init__(
        self,
        job: Job,
        host: str,
        *,
        http: bool = False,
        home: Path | None = None,
        timeout: tuple[float, float] = TIMEOUT_SECONDS,
    ) -> None:
        self.job, self._timeout = job, timeout
        self._base = f"{'http' if http else 'https'}://{host}"
        self._schemes = ("https", "http") if http else ("https",)
        self._host = host
        self._known = credentials.for_registry(
            host, home or Path.home(), job.site.caller
        )
        self._authorization: dict[str, str] = {}  # by repository
        self._proxies = Proxies.of({**job.site.variables, **job.site.caller})
        self._session = requests.Session()
        self._session.trust_env = False  # neither .netrc nor this process's variables
        bundle = job.site.ca_bundle
        self._session.verify = str(bundle) if bundle else True

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @contextlib.contextmanager
    def ask(
        self, method: str, repository: str, what: str
    ) -> Iterator[requests.Response]:
        """One good answer, its body not yet read."""
        url = f"{self._base}/v2/{repository}/{what}"
        answer = self._answer(method, url, repository)
        if answer.status_code == 401:
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.close()
            self._log_in(challenge, repository)
            answer = self._answer(method, url, repository)
        with answer:
            if not answer.ok:
                raise self._refused(answer.status_code, what)
            yield answer

    def fetch(self, repository: str, what: str) -> tuple[bytes, Mapping[str, str]]:
        """A small answer and its headers; asked for again where it breaks off.

        :raises BuildError: as of :meth:`ask`
        """
        for attempt in range(ATTEMPTS):
            with self.ask("GET", repository, what) as answer:
                try:
                    return self._body(answer), answer.headers
                except requests.RequestException as error:
                    self.job.check()
                    if attempt + 1 == ATTEMPTS:
                        raise self.unreachable(error) from error
            self.pause(attempt)
        raise AssertionError

    def _answer(self, method: str, url: str, repository: str) -> requests.Response:
        """Follow redirects; the authorization stays with this registry."""
        for _ in range(MAX_REDIRECTS):
            headers = {"Accept": _ACCEPT} if "/manifests/" in url else {}
            if url.startswith(f"{self._base}/") and repository in self._authorization:
                headers["Authorization"] = self._authorization[repository]
            answer = self._sent(method, url, headers)
            if answer.status_code not in {301, 302, 303, 307, 308}:
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            answer.close()
            if urlsplit(target).scheme not in self._schemes:
                raise self.odd("it redirects to a place without TLS")
            url = target
        raise self.odd("it redirects in circles")

    def _sent(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """An answer, after some patience with a server in trouble."""
        for attempt in range(ATTEMPTS):
            self.job.check()
            last, least = attempt + 1 == ATTEMPTS, 0.0
            try:
                answer = self._session.request(
                    method,
                    url,
                    headers={"Accept-Encoding": "identity", **headers},
                    data=form,
                    allow_redirects=False,
                    stream=True,
                    timeout=self._patience(),
                    proxies=self._proxies.for_url(url),
                )
            except (requests.RequestException, UnicodeError) as error:
                self.job.check()
                if last or isinstance(error, requests.exceptions.SSLError):
                    raise self.unreachable(error) from error
            else:
                wished = wished_pause(answer.status_code, answer.headers)
                if last or wished is None:
                    return answer
                least = wished
                answer.close()
            self.pause(attempt, least)
        raise AssertionError

    def _patience(self) -> tuple[float, float]:
        """A server that says nothing holds no build longer than that may take."""
        left = self.job.left() + MOMENT_SECONDS
        connect, read = self._timeout
        return min(connect, left), min(read, left)

    def pause(self, attempt: int, least: float = 0.0) -> None:
        """Wait before the next attempt, no longer than the build may take."""
        wanted = max(least, PAUSE_SECONDS * 2**attempt)
        self.job.cancel.wait(min(wanted, self.job.left() + MOMENT_SECONDS))
        self.job.check()

    def _log_in(self, challenge: str, repository: str) -> None:
        """Do what a 401 asks for; without credentials, as nobody in particular."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._known and self._known.user:
            self._authorization[repository] = self._basic()
        elif scheme.lower() == "bearer":
            told = {key.lower(): value for key, value in _PARAMETER.findall(rest)}
            told.setdefault("scope", f"repository:{repository}:pull")
            token = self._token(told)
            self._authorization[repository] = f"Bearer {token}"
        else:
            raise self._refused(401, "")

    def _token(self, told: Mapping[str, str]) -> str:
        realm = urljoin(f"{self._base}/", told.get("realm", ""))
        scheme = urlsplit(realm).scheme
        if scheme not in self._schemes:
            raise self.odd("it wants a login without TLS")
        query = {key: told[key] for key in ("service", "scope") if key in told}
        known = self._known
        if known and known.token:
            form = {"grant_type": "refresh_token", "client_id": "gc-apptainer", **query}
            answer = self._sent(
                "POST", realm, {}, {**form, "refresh_token": known.token}
            )
        else:
            headers = {"Authorization": self._basic()} if known else {}
            url = requests.Request("GET", realm, params=query).prepare().url or realm
            answer = self._sent("GET", url, headers)
        with answer:
            if not answer.ok:
                raise self._refused(answer.status_code, "")
            try:
                given = json.loads(self._body(answer))
                token = given.get("token") or given.get("access_token")
            except requests.RequestException as error:
                self.job.check()
                raise self.unreachable(error) from error
            except (ValueError, AttributeError):
                token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self.odd("its token service gives no token")
        return token

    def _basic(self) -> str:
        known = self._known or credentials.Credentials()
        pair = f"{known.user}:{known.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def _body(self, answer: requests.Response) -> bytes:
        body = b""
        for piece in answer.iter_content(CHUNK_BYTES):
            self.job.check()
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise self.odd("its answer is too long")
        return body

    def check_digest(self, wanted: str, found: str) -> None:
        if wanted != found:
            raise self.job.error(
                f"the registry {self._host} gives {found} in place of {wanted}",
                code="digest-mismatch",
                hint="the image was damaged on its way, or something between here and "
                "the registry changes it: tell the endpoint's admin",
            )

    def _refused(self, status: int, what: str) -> BuildError:
        if status == 404:
            return self.job.error(
                "the registry has no such base image",
                code="base-not-found",
                hint="check the name and the tag of `base_image`",
            )
        if status in {401, 403}:
            return self.job.error(
                "the registry does not give out this base image",
                code="base-not-found",
                hint="check the name; for a private one the endpoint's owner must log "
                "in (`apptainer registry login`)",
            )
        if status == 429:
            return self.job.error(
                "the registry refuses further downloads for now",
                code="registry-unreachable",
                hint="wait, log in to the registry, or use a mirror of the base image",
            )
        return self.odd(f"it answers {status}" + (f" for {what}" if what else ""))

    def odd(self, how: str) -> BuildError:
        return self.job.error(
            f"the registry {self._host} does not answer as it should: {how}",
            code="registry-unreachable",
            hint="check the registry's name and this site's proxy settings",
        )

    def unreachable(self, error: Exception) -> BuildError:
        message = f"the registry {self._host} cannot be reached from this endpoint"
        hint = "check the registry's name and this site's proxy settings"
        said = str(error)
        if isinstance(error, requests.exceptions.SSLError):
            if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
                message = f"the registry {self._host} speaks no TLS"
                hint = "name it in `build.http_registries` if that is meant"
            else:
                message = f"the certificate of {self._host} is not trusted here"
                hint = "name the site's CA bundle as `build.ca_bundle`"
        self.job.transcript.note(f"{self._host}: {said}")
        return self.job.error(message, code="registry-unreachable", hint=hint)


def wished_pause(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone after this answer, at least 0.

    None: the answer stands, or it wants more than anybody waits for. A server that
    refuses because it was asked too often (429) is asked again only if it says when.
    """
    if status != TOO_OFTEN and status < SERVER_TROUBLE:
        return None
    said = headers.get("Retry-After", "").strip()
    seconds = 0.0 if status >= SERVER_TROUBLE else None
    if said.isdecimal():
        seconds = float(said[:9])
    elif said:
        with contextlib.suppress(ValueError, TypeError):
            when = parsedate_to_datetime(said)
            seconds = max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
    return None if seconds is None or seconds > MAX_PAUSE_SECONDS else seconds
