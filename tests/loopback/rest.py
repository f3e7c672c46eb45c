"""The HTTP side of the stand-in service: Compute's REST calls and Globus Auth's.

Runs in the test process. It answers requests in origin form (``GET /v2/version``) and
in the absolute form that a proxy gets (``GET http://localhost:5000/v2/version``), since
an endpoint of the ``local`` environment is only brought here by ``http_proxy``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = dict[str, Any]
Handler = Callable[..., Answer]


class ApiError(Exception):
    """A refusal, sent to the caller as JSON with ``status``."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Router:
    """Maps ``METHOD /path/{name}`` to a function of the path's fields and the body."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Serve ``method path``; each ``{name}`` in it becomes a keyword argument."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
        self._routes.append((method, re.compile(pattern), handler))

    def answer(self, method: str, target: str, body: Any) -> Answer:
        """Call the handler for a request; raises ApiError if there is none."""
        path = urlsplit(target).path
        for known, pattern, handler in self._routes:
            if known == method and (match := pattern.fullmatch(path)):
                return handler(body, **match.groupdict())
        raise ApiError(
            HTTPStatus.NOT_FOUND, f"the stand-in does not serve {method} {path}"
        )


class RestServer:
    """An HTTP server on a free loopback port, in a thread of its own."""

    def __init__(self, router: Router) -> None:
        handler = type("_RoutedRequest", (_Request,), {"router": router})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="loopback-rest", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Request(BaseHTTPRequestHandler):
    """One connection; the router is set by :class:`RestServer`."""

    protocol_version = "HTTP/1.1"
    router: Router

    def _serve(self) -> None:
        try:
            answer = self.router.answer(self.command, self.path, self._body())
            status = HTTPStatus.OK
        except ApiError as error:
            answer, status = (
                {"code": error.status.phrase, "reason": error.reason},
                error.status,
            )
        except Exception as error:
            answer = {"code": "Internal", "reason": f"{type(error).__name__}: {error}"}
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._reply(status, json.dumps(answer).encode())

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not raw:
            return {}
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(raw)
        return {key: values[-1] for key, values in parse_qs(raw.decode()).items()}

    def _reply(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing: the endpoint's own log has what a test needs."""
