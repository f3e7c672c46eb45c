"""A way to a server that goes wrong, in the ways in which networks and servers do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RESET, HANG, STALL, CUT, FLIP = "reset", "hang", "stall", "cut", "flip"
"""The connection is reset; the server answers nothing; it stops in the middle of an
answer; it ends there; one bit of the answer is another one."""

_PASSED_ON = ("Content-Type", "Docker-Content-Digest")


class Faulty:
    """Passes requests on to ``server`` (``host:port``), and answers as it does, but for
    those whose path holds ``where``: they meet ``fault``, one of the above or an HTTP
    status. A ``limit`` lets the fault happen so many times only.

    :ivar address: ``host:port`` of this one, on loopback
    :ivar struck: the paths that met the fault
    """

    def __init__(self, server: str) -> None:
        self._server, self._released = server, threading.Event()
        self._lock = threading.Lock()
        self.fault: str | int | None = None
        self.where, self.limit = "", -1
        self.struck: list[str] = []
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    faulty._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # clients that gave up
        self.address = f"127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def break_down(self, fault: str | int, where: str = "", limit: int = -1) -> None:
        self.where, self.limit, self.struck = where, limit, []
        self.fault = fault

    def recover(self) -> None:
        self.fault = None

    def close(self) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _strikes(self, path: str) -> str | int | None:
        with self._lock:
            if self.fault is None or self.where not in path or not self.limit:
                return None
            self.limit -= 1
            self.struck.append(path)
            return self.fault

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        fault = self._strikes(request.path)
        if fault == HANG:
            self._released.wait()
        elif fault == RESET:
            _reset(request)
        elif isinstance(fault, int):
            request.send_response(fault)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self._pass_on(request, fault)

    def _pass_on(self, request: BaseHTTPRequestHandler, fault: str | None) -> None:
        url = f"http://{self._server}{request.path}"
        names = ("Accept", "Range", "Authorization")
        headers = {n: v for n in names if (v := request.headers.get(n))}
        asked = urllib.request.Request(url, headers=headers, method=request.command)
        try:
            answer = urllib.request.urlopen(asked, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            request.send_response(answer.status)
            for name in _PASSED_ON:
                if value := answer.headers.get(name):
                    request.send_header(name, value)
            length = answer.headers.get("Content-Length") or str(len(body))
            request.send_header("Content-Length", length)
            request.end_headers()
        self._send(request, body, fault)

    def _send(
        self, request: BaseHTTPRequestHandler, body: bytes, fault: str | None
    ) -> None:
        half = len(body) // 2
        if fault in (STALL, CUT):
            request.wfile.write(body[:half])
            request.wfile.flush()
            if fault == STALL:
                self._released.wait()
        elif fault == FLIP:
            damaged = bytearray(body)
            damaged[half] ^= 1
            request.wfile.write(damaged)
        else:
            request.wfile.write(body)


@contextlib.contextmanager
def in_front_of(server: str) -> Iterator[Faulty]:
    made = Faulty(server)
    try:
        yield made
    finally:
        made.close()


def _reset(request: BaseHTTPRequestHandler) -> None:
    """End the connection as a crash of the server's machine does."""
    linger = struct.pack("ii", 1, 0)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.connection.close()
