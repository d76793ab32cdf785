"""Server of policies over HTTP: serves policies of other frameworks to `demoscale score`, and this project's
policies to other programs. `policy/http_policy.py` is the client.

GET /contract   -> 200, JSON: the fields of `policy.interface.Contract`, and the policy's needs.
POST /act       observations -> 200, chunks; `policy/http_protocol.py` defines both formats.
Anything else   -> one line of plain text that gives the reason, and 400 (invalid request), 401 (wrong or
                   missing token), 403 (sent by a web page of another origin), 404, 408 (received too
                   slowly), 410 (the session of a policy with memory is unknown), 411 (no Content-Length),
                   413 (body too large), 414 and 431 (first line or head too large), 415 (a Content-Type that
                   any web page may send), 500 (the policy failed), 501 (another method) or 503 (too many
                   requests at once).

POST /act carries Content-Type: application/octet-stream. Connections are kept alive. There is no encryption.
A server with a token answers only requests that carry `Authorization: Bearer TOKEN`; one without a token
answers every process that reaches the port. By default a server listens on the loopback interface only; put
an encrypting proxy in front of it to serve other machines. Both sides bound what they read: size by the
contract (`policy/http_protocol.py`), total time, headers and nesting.
"""

import hmac
import io
import ipaddress
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from policy.http_limits import HEAD_BYTES, TOKEN, BoundedReader, TooLargeError, bearer_of
from policy.http_protocol import (
    MOST_BYTES,
    RemoteError,
    contract_json,
    one_line,
    pack_chunks,
    request_bytes,
    unpack_observations,
)
from policy.interface import ActionChunk, LostSessionError, Observation, Policy, needs_of
from policy.sessions import AnsweredOnce
from policy.untrusted import printable

IDLE_S = 600.0
"""Seconds until a connection without a request is closed; the client then opens another."""
HEAD_S = 10.0
"""Seconds in which the first request must begin to arrive, and in which the head of any request must be
complete.
"""
BODY_S, BODY_BYTES_PER_S = 10.0, 1 << 20
"""Time limit of a body: BODY_S seconds, and one more for every BODY_BYTES_PER_S bytes."""
SEND_S = 60.0
"""Seconds that the client may take to receive an answer."""
LINGER_S, LINGER_BYTES = 1.0, 64 << 20
"""Seconds and bytes for which a refused body is read and dropped: closing at once would reset the connection
before the refusal arrives.
"""
MOST_CONNECTIONS = 512
"""Maximum number of connections open at once to one server."""
_SAFELISTED = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
# https://fetch.spec.whatwg.org/#cors-safelisted-request-header: types that a browser sends to another origin
# without a preflight request.


@dataclass(eq=False)
class _Asked:
    observations: list[Observation]
    answer: list[ActionChunk] | Exception | None = None


class _OneAtATime:
    """Serialises calls of the policy. With `join`, the requests that wait meanwhile form the next batch.

    A policy with memory answers every observation once, and may be asked about many sessions in one batch.
    """

    def __init__(self, policy: Policy, join: bool) -> None:
        self._policy, self._join = policy, join
        self._once = AnsweredOnce(policy) if needs_of(policy).memory else None
        self._waiting: list[_Asked] = []
        self._list, self._turn = threading.Lock(), threading.Lock()

    def act(self, observations: list[Observation]) -> list[ActionChunk]:
        if not self._join and self._once is None:
            with self._turn:
                return self._policy.act(observations)
        mine = _Asked(observations)
        with self._list:
            self._waiting.append(mine)
        # with `join`, the thread that acquires it first answers all waiting requests; the others find their
        # answers set
        with self._turn:
            if mine.answer is None:
                with self._list:
                    together = [*self._waiting] if self._join else [mine]
                    self._waiting = [asked for asked in self._waiting if asked not in together]
                self._answer(together)
        if isinstance(mine.answer, Exception):
            raise mine.answer
        assert mine.answer is not None
        return mine.answer

    def _answer(self, together: list[_Asked]) -> None:
        if self._once is not None:
            answers = iter(self._once.answers([seen for asked in together for seen in asked.observations]))
            for asked in together:
                own = [next(answers) for _ in asked.observations]
                failed = next((answer for answer in own if isinstance(answer, Exception)), None)
                asked.answer = failed or [answer for answer in own if not isinstance(answer, Exception)]
            return
        try:
            chunks = iter(
                self._policy.act([observation for asked in together for observation in asked.observations])
            )
            for asked in together:
                asked.answer = [next(chunks) for _ in asked.observations]
        except Exception as error:
            if len(together) == 1:
                together[0].answer = error
            else:  # isolate the failing request: retry each one alone
                for asked in together:
                    self._answer([asked])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # many simulators may connect at once

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], most_connections: int
    ) -> None:
        self._free = threading.BoundedSemaphore(most_connections)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in its own thread; refuse it with 503 if too many are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        line = b"too many connections are open; try again later"
        head = (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nConnection:"
            b" close\r\nContent-Length: %d\r\n\r\n"
        )
        with suppress(OSError):
            request.setblocking(False)  # this thread accepts all connections, so it must not block on one
            request.send(head % len(line) + line)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection until it is closed, then free its slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that disconnects is not a server error
            super().handle_error(request, client_address)


class _Room:
    """Budget of bytes for the request bodies in memory at once."""

    def __init__(self, most_bytes: int) -> None:
        self._left, self._lock = most_bytes, threading.Lock()

    @contextmanager
    def take(self, size: int) -> Iterator[bool]:
        """Yield whether a body of this size fits; reserve its bytes until the end of the block."""
        with self._lock:
            taken = size if size <= self._left else 0
            self._left -= taken
            granted = size <= taken
        try:
            yield granted
        finally:
            with self._lock:
                self._left += taken


def _foreign(origin: str, host: str) -> bool:
    """Return whether a browser's Origin differs from this server, named by the request's Host header.

    An Origin equal to the Host is no proof if the Host is a domain name: its owner may resolve it to this
    machine's address (DNS rebinding).
    """
    if origin not in (f"http://{host}", f"https://{host}"):
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
    except ValueError:
        return host.partition(":")[0] != "localhost"
    return False


def make_server(
    policy: Policy,
    host: str = "127.0.0.1",
    port: int = 8000,
    join: bool = False,
    most_bytes: int = MOST_BYTES,
    token: str = "",
    most_connections: int = MOST_CONNECTIONS,
) -> ThreadingHTTPServer:
    """Return a server that is ready for serve_forever(); port 0 binds a free port, found in `server_address`.

    join: answer the requests that wait for the policy as one batch. Faster where a batch costs little more
    than one observation; answers then depend on the composition of the batch, unless the policy rounds alike
    in every batch. most_bytes: size limit of a request, packed or unpacked, and of all requests in memory at
    once; the contract bounds a request further. token: required in every request; empty: none.

    A policy may state needs (`policy.interface.PolicyNeeds`). One with memory is asked about the sessions of
    many clients, several of them in one batch, and keeps its states by `Observation.episode`
    (`policy.sessions.SessionStates`).

    Raises RemoteError if a header cannot carry the token, and ValueError if the policy states needs that
    none may have.
    """
    turns, wanted = _OneAtATime(policy, join), bearer_of(token).encode()
    contract, needs = policy.contract, needs_of(policy)
    largest, room = request_bytes(contract, most_bytes, needs), _Room(most_bytes)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # head and body are two writes; the second would wait for the acknowledgement of the first
        disable_nagle_algorithm = True
        # send_response reads them, even for an incomplete request
        requestline, request_version, command = "", "HTTP/1.1", ""

        def setup(self) -> None:
            super().setup()
            self.rfile.close()
            self.bounded = BoundedReader(self.connection, time.monotonic() + HEAD_S, HEAD_BYTES)
            self.rfile = io.BufferedReader(self.bounded)
            self.begins_s = HEAD_S

        def handle_one_request(self) -> None:
            """Read the head of a request within its time and size limits, and answer it."""
            self.bounded.until, self.bounded.complete_s = time.monotonic() + self.begins_s, HEAD_S
            self.bounded.left, self.bounded.received = 2 * HEAD_BYTES, 0
            self.begins_s, self.close_connection = IDLE_S, True
            try:
                self.raw_requestline = self.rfile.readline(HEAD_BYTES + 1)
                if not self.raw_requestline:
                    return
                if len(self.raw_requestline) > HEAD_BYTES:
                    self._refuse(414, f"the first line of the request has more than {HEAD_BYTES} bytes")
                elif self.parse_request() and self._may_ask():
                    self._answer()
            except TimeoutError:
                if self.bounded.received:
                    self._refuse(408, "the request was not complete in time; send it faster")
            except TooLargeError:
                self._refuse(431, f"the head of the request has more than {2 * HEAD_BYTES} bytes")

        def _may_ask(self) -> bool:
            sent = self.headers.get("Authorization", "")
            if not wanted or hmac.compare_digest(sent.encode(errors="replace"), wanted):
                return True
            self._refuse(
                401, f"this policy server requires a token; set {TOKEN} to it in the client's environment"
            )
            return False

        def _answer(self) -> None:
            if self.command not in ("GET", "POST"):
                self._refuse(501, "unknown request; this server answers GET /contract and POST /act")
            elif (origin := self.headers.get("Origin")) is not None and _foreign(
                origin, self.headers.get("Host", "")
            ):
                self._refuse(403, "a web page of another origin sent this request; only programs may")
            elif self.command == "GET":
                self._get()
            else:
                self._post()

        def _get(self) -> None:
            if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
                # the body is not read, and must not be parsed as the next request
                self.close_connection = True
            if self.path.rstrip("/").endswith("/contract"):
                self._reply(200, json.dumps(contract_json(contract, needs)).encode(), "application/json")
            else:
                self._say(404, "unknown request; this server answers GET /contract and POST /act")

        def _post(self) -> None:
            sizes = self.headers.get_all("Content-Length", [])
            kind = self.headers.get_content_type() if "Content-Type" in self.headers else ""
            if not self.path.rstrip("/").endswith("/act"):
                self._refuse(404, "unknown request; this server answers GET /contract and POST /act")
            elif "Transfer-Encoding" in self.headers or not sizes:
                self._refuse(411, f"the request must have one Content-Length, of at most {largest} bytes")
            elif len(sizes) > 1 or not (sizes[0].isascii() and sizes[0].isdecimal()):
                self._refuse(400, "Content-Length must be one whole number")
            elif len(sizes[0]) > 18 or int(sizes[0]) > largest:
                self._refuse(413, f"the body is larger than {largest} bytes, the most that this policy needs")
            elif kind in _SAFELISTED:
                self._refuse(
                    415, f"Content-Type is {kind}, which any web page may send; send application/octet-stream"
                )
            else:
                size = int(sizes[0])
                with room.take(size) as granted:
                    if granted:
                        self._act(size)
                    else:
                        self._refuse(503, "too many requests are being read; try again later")

        def _act(self, size: int) -> None:
            """Read the body, query the policy and answer."""
            self.bounded.until = time.monotonic() + BODY_S + size / BODY_BYTES_PER_S
            self.bounded.left = float("inf")  # Content-Length bounds the body already
            body = self.rfile.read(size)
            if len(body) < size:
                self._refuse(400, f"the body ends after {len(body)} of {size} bytes")
                return
            try:
                observations = unpack_observations(body, contract, most_bytes, needs)
            except RemoteError as error:
                self._say(400, str(error))
                return
            del body
            try:
                answer = pack_chunks(turns.act(observations), contract, len(observations))
            except RemoteError as error:
                self._say(500, str(error))
            except LostSessionError as error:
                self._say(410, error.message)
            except Exception as error:  # raised by the policy: report it to the client and keep serving
                self._say(500, one_line(error))
            else:
                self._reply(200, answer, "application/octet-stream")

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """Refuse what `parse_request` cannot read with one line of plain text instead of an HTML page."""
            self._refuse(code, printable(message or "the request is not HTTP"))

        def _refuse(self, status: int, line: str) -> None:
            """Answer without reading the rest of the request, and close the connection."""
            self.close_connection = True
            self._say(status, line)
            with suppress(OSError, TooLargeError):
                self.connection.shutdown(socket.SHUT_WR)
                self.bounded.until, self.bounded.left = time.monotonic() + LINGER_S, LINGER_BYTES
                dropped = memoryview(bytearray(1 << 16))
                while self.bounded.readinto(dropped):
                    pass

        def _say(self, status: int, line: str) -> None:
            self._reply(status, line.encode(errors="replace"), "text/plain; charset=utf-8")

        def _reply(self, status: int, body: bytes, kind: str) -> None:
            self.connection.settimeout(SEND_S)
            # without a version (HTTP/0.9), http.server sends no status line
            self.request_version = self.protocol_version
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return _Server((host, port), Handler, most_connections)


def serve(
    policy: Policy, host: str = "127.0.0.1", port: int = 8000, join: bool = False, token: str = ""
) -> None:
    """Serve a policy until interrupted; arguments as for `make_server`."""
    with make_server(policy, host, port, join, token=token) as server:
        server.serve_forever()
