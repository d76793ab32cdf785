"""An HTTP proxy to a server of S3 or MLflow that injects network and server faults."""

import http.client
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from threading import Thread
from urllib.parse import urlsplit

REFUSALS = {
    "ExpiredToken": 400,
    "RequestExpired": 400,
    "InvalidToken": 400,
    "AccessDenied": 403,
    "RequestTimeTooSkewed": 403,
    "ConditionalRequestConflict": 409,
    "RequestTimeout": 400,
    "TooManyRequests": 429,
    "NotImplemented": 501,
    "SlowDown": 503,
}
"""Error code -> HTTP status."""


class FaultProxy(ThreadingHTTPServer):
    """A proxy to the server at `upstream`. `will` sets the faults of the next requests; later ones are passed
    on as they are.

    A code of REFUSALS: answered with that error. "unconditional": passed on without its condition. "cut":
    half of the answer's body comes back. "unanswered": passed on, and the connection is closed instead of an
    answer. "web page": answered as other web servers do. "late": passed on only after `late_s`.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.authorization = ""
        self.late_s = 5.0
        self._faults: Iterator[str] = repeat("")

    def will(self, *faults: str, always: bool = False) -> None:
        self.requests.clear()
        self._faults = repeat(*faults) if always else chain(faults, repeat(""))

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: the client has given up meanwhile."""

    def next_fault(self, request: str) -> str:
        self.requests.append(request)
        return next(self._faults)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.authorization = self.headers.get("Authorization", "")
        fault = self.server.next_fault(f"{self.command} {urlsplit(self.path).path}")
        if fault in REFUSALS:
            # Some servers repeat what was signed: nothing of it may be shown.
            signed = f"<StringToSign>{self.headers.get('Authorization', '')}</StringToSign>"
            self.reply(
                REFUSALS[fault],
                f"<Error><Code>{fault}</Code><Message>{signed}</Message>{signed}</Error>".encode(),
            )
        elif fault == "web page":
            self.reply(404, b"<!DOCTYPE html><html><p>Not found<br>")
        else:
            if fault == "late":
                time.sleep(self.server.late_s)
            dropped = ("expect", "if-none-match") if fault == "unconditional" else ("expect",)
            upstream = http.client.HTTPConnection(self.server.upstream)
            try:
                upstream.request(
                    self.command,
                    self.path,
                    body,
                    {k: v for k, v in self.headers.items() if k.lower() not in dropped},
                )
                answer = upstream.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):  # the server is down
                fault = "unanswered"
            finally:
                upstream.close()
            if fault == "unanswered":
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.reply(answer.status, data, answer.getheaders(), cut=fault == "cut")

    def reply(
        self, status: int, data: bytes, headers: Iterable[tuple[str, str]] = (), cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    do_GET = do_PUT = do_HEAD = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    with FaultProxy(upstream) as proxy:
        Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield proxy
        proxy.shutdown()
