"""Policies over HTTP: whatever learned elsewhere can be scored here, and what learned here can act elsewhere.

GET /contract   -> 200, JSON: the fields of `policy.interface.Contract`.
POST /act       observations -> 200, chunks; both as `policy/wire.py` lays them out.
Anything else   -> 400 (what was sent is wrong), 404, 413 (too large), 500 (the policy failed), with one line of plain text that says why.

Connections are kept alive. There is no authentication and no encryption: whoever reaches the port may ask. A server listens to its own
machine only, unless told otherwise; put a proxy in front of it where that is not enough.
"""

import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from policy.interface import ActionChunk, Contract, Observation, Policy
from policy.wire import MOST_BYTES, RemoteError, one_line, pack_chunks, pack_observations, unpack_chunks, unpack_observations

IDLE_S = 600.0
"""A connection over which nothing comes for so long is closed; who wants to go on opens another."""

__all__ = ["RemoteError", "RemotePolicy", "make_server", "serve"]

# -- the server ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Asked:
    observations: list[Observation]
    answer: list[ActionChunk] | Exception | None = None


class _OneAtATime:
    """Lets one thread at a time ask the policy. With `join`, what waits meanwhile forms the next batch."""

    def __init__(self, policy: Policy, join: bool) -> None:
        self._policy, self._join = policy, join
        self._waiting: list[_Asked] = []
        self._list, self._turn = threading.Lock(), threading.Lock()

    def act(self, observations: list[Observation]) -> list[ActionChunk]:
        mine = _Asked(observations)
        if not self._join:
            with self._turn:
                return self._policy.act(observations)
        with self._list:
            self._waiting.append(mine)
        with self._turn:  # whoever gets it first answers all who wait; they find their answers when it is their turn
            if mine.answer is None:
                with self._list:
                    together, self._waiting = self._waiting, []
                self._answer(together)
        if isinstance(mine.answer, Exception):
            raise mine.answer
        assert mine.answer is not None
        return mine.answer

    def _answer(self, together: list[_Asked]) -> None:
        try:
            chunks = iter(self._policy.act([observation for asked in together for observation in asked.observations]))
            for asked in together:
                asked.answer = [next(chunks) for _ in asked.observations]
        except Exception as error:
            if len(together) == 1:
                together[0].answer = error
            else:  # nobody shall suffer from what another one asked
                for asked in together:
                    self._answer([asked])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # many simulators may begin at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # who hangs up in the middle is no error of ours
            super().handle_error(request, client_address)


def make_server(policy: Policy, host: str = "127.0.0.1", port: int = 8000, join: bool = False, most_bytes: int = MOST_BYTES) -> ThreadingHTTPServer:
    """Ready to serve_forever(); port 0 takes a free one, `server_address` says which.

    join: requests that wait for the policy are answered as one batch. Faster where a batch costs little more than one observation; answers
    then depend on who else asks, unless the policy rounds alike in every batch. most_bytes: size limit of a request, packed or unpacked.
    """
    turns = _OneAtATime(policy, join)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes; the second would wait for the first one's receipt
        timeout = IDLE_S

        def do_GET(self) -> None:
            if self.path.rstrip("/").endswith("/contract"):
                self._reply(200, json.dumps(policy.contract.to_json()).encode(), "application/json")
            else:
                self._say(404, "there are GET /contract and POST /act")

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdigit() or int(size) > most_bytes:
                self.close_connection = True  # what follows is not read
                self._say(413, f"the body must say its Content-Length, of at most {most_bytes}")
                return
            body = self.rfile.read(int(size))
            if not self.path.rstrip("/").endswith("/act"):
                self._say(404, "there are GET /contract and POST /act")
                return
            try:
                observations = unpack_observations(body, policy.contract, most_bytes)
            except RemoteError as error:
                self._say(400, str(error))
                return
            try:
                answer = pack_chunks(turns.act(observations))
            except RemoteError as error:
                self._say(500, str(error))
            except Exception as error:  # the policy's own: whoever asked is told, the server lives on
                self._say(500, one_line(error))
            else:
                self._reply(200, answer, "application/octet-stream")

        def _say(self, status: int, line: str) -> None:
            self._reply(status, line.encode(), "text/plain; charset=utf-8")

        def _reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return _Server((host, port), Handler)


def serve(policy: Policy, host: str = "127.0.0.1", port: int = 8000, join: bool = False) -> None:
    """Answer until interrupted."""
    with make_server(policy, host, port, join) as server:
        server.serve_forever()


# -- the client ---------------------------------------------------------------------------------------------------------------------


class RemotePolicy:
    """The `Policy` behind a URL. Usable from several threads, each over a connection of its own.

    timeout_s: the policy may think so long about an answer. patience_s: a server that is not there, or goes away, may take so long to come
    back; asking again is harmless, because an answer is a function of the observation.
    """

    def __init__(self, url: str, timeout_s: float = 120.0, patience_s: float = 20.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"{url} is not the address of a policy server: it must look like http://127.0.0.1:8000")
        self.url, self._timeout_s, self._patience_s = url.rstrip("/"), timeout_s, patience_s
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._of_thread = threading.local()

    @cached_property
    def contract(self) -> Contract:
        """What the policy was trained with, by its own account."""
        try:
            return Contract.from_json(json.loads(self._ask("GET", "/contract")))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RemoteError(f"what {self.url} calls its contract is not one: {one_line(error)}") from None

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        if not observations:
            return []
        answer = self._ask("POST", "/act", pack_observations(observations, self.contract.cameras))
        try:
            return unpack_chunks(answer, len(observations), self.contract)
        except RemoteError as error:
            raise RemoteError(f"the policy server at {self.url} answered wrongly: {error}") from None

    def close(self) -> None:
        """Hang up, as far as the calling thread is concerned."""
        if connection := getattr(self._of_thread, "connection", None):
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        until, pause = time.monotonic() + self._patience_s, 0.05
        while True:
            try:
                status, answer = self._once(method, path, body)
                break
            except TimeoutError:
                self.close()
                raise RemoteError(f"the policy server at {self.url} did not answer within {self._timeout_s:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if time.monotonic() + pause > until:
                    raise RemoteError(f"no policy server answers at {self.url}; is it running? ({one_line(error)})") from None
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        if status != 200:
            line = (answer.decode(errors="replace").strip().splitlines() or ["it says no more"])[-1][:500]
            raise RemoteError(f"the policy server at {self.url} refused ({status}): {line}")
        return answer

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._kind(self._host, self._port, timeout=self._timeout_s)
        connection.request(method, self._path + path, body, {"Content-Type": "application/octet-stream"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
