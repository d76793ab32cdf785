"""Client of a policy behind a URL; `policy/http_server.py` is the server and describes the protocol."""

import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from policy.http_limits import HEAD_BYTES, TOKEN, BoundedReader, TooLargeError, bearer_of
from policy.http_protocol import (
    MOST_OBSERVATIONS,
    RemoteError,
    answer_bytes,
    checked_contract,
    checked_needs,
    one_line,
    pack_observations,
    unpack_chunks,
)
from policy.interface import ActionChunk, Contract, LostSessionError, Observation, PolicyNeeds
from policy.untrusted import printable, read_json

CONTRACT_BYTES, REFUSAL_BYTES = 1 << 20, 1 << 16
"""Size limits in bytes: a contract, the text of a refusal."""
CUT_SHORT = 3
"""Truncated answers after which the client stops retrying."""

T = TypeVar("T")


class _Response(http.client.HTTPResponse):
    """HTTP response with a deadline and a size limit for head and body."""

    def __init__(
        self, connection: socket.socket, *args: Any, until: float, most_bytes: int, **keywords: Any
    ) -> None:
        super().__init__(connection, *args, **keywords)
        self.fp.close()
        # One byte more than allowed, to distinguish an answer of the largest size from a larger one.
        self.fp = io.BufferedReader(BoundedReader(connection, until, most_bytes + HEAD_BYTES + 1))


class UnreachableError(RemoteError):
    """A policy server does not answer, or not in time."""


class RemotePolicy:
    """The `Policy` behind a URL. Usable from several threads; each thread has its own connection.

    timeout_s: seconds from a request to the end of its answer. patience_s: seconds for which a request is
    retried while no server listens, a connection is lost or the server answers 503; a retry is harmless,
    because an answer is a function of the observation, and a server of a policy with memory answers every
    observation of a session once. token: sent with every request; None: that of the environment (`TOKEN`).
    Redirects are not followed. The properties and `act` raise RemoteError; `act` raises LostSessionError if
    the server does not know the session of an observation after its first.
    """

    def __init__(
        self, url: str, timeout_s: float = 120.0, patience_s: float = 20.0, token: str | None = None
    ) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            known = parts.scheme in ("http", "https") and host
        except ValueError:  # an invalid port, unbalanced brackets
            known = None
        if not known or host is None:
            raise RemoteError(
                f"{printable(url)} is not the address of a policy server: it must look like"
                " http://127.0.0.1:8000"
            )
        self.url, self._timeout_s, self._patience_s = url.rstrip("/"), timeout_s, patience_s
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._of_thread = threading.local()
        bearer = bearer_of(os.environ.get(TOKEN, "").strip() if token is None else token)
        self._headers = {"Authorization": bearer} if bearer else {}

    @cached_property
    def _stated(self) -> tuple[Contract, PolicyNeeds]:
        try:
            stated = read_json(self._ask("GET", "/contract", CONTRACT_BYTES), CONTRACT_BYTES)
            return checked_contract(stated), checked_needs(stated)
        except (ValueError, TypeError) as error:
            raise RemoteError(f"the contract from {self.url} is not valid: {printable(str(error))}") from None

    @property
    def contract(self) -> Contract:
        """Conventions that the policy was trained with, as the server reports them; queried once."""
        return self._stated[0]

    @property
    def memory(self) -> bool:
        """Whether the policy has memory."""
        return self._stated[1].memory

    @property
    def observation_steps(self) -> int:
        """Observations of consecutive control steps that the policy takes at once."""
        return self._stated[1].observation_steps

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, in requests of at most MOST_OBSERVATIONS."""
        chunks: list[ActionChunk] = []
        for first in range(0, len(observations), MOST_OBSERVATIONS):
            chunks += self._act(observations[first : first + MOST_OBSERVATIONS])
        return chunks

    def _act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        contract, needs = self._stated
        body = pack_observations(observations, contract.cameras, needs)
        answer = self._ask("POST", "/act", answer_bytes(contract, len(observations)), body)
        try:
            return unpack_chunks(answer, len(observations), contract)
        except RemoteError as error:
            raise RemoteError(f"the policy server at {self.url} sent an invalid answer: {error}") from None

    def close(self) -> None:
        """Close the connection of the calling thread."""
        if connection := getattr(self._of_thread, "connection", None):
            connection.close()

    def _ask(
        self, method: str, path: str, most_bytes: int = REFUSAL_BYTES, body: bytes | None = None
    ) -> bytes:
        until, pause, cut_short = time.monotonic() + self._patience_s, 0.05, 0
        while True:
            try:
                status, answer = self._once(method, path, most_bytes, body)
                if status != 503 or time.monotonic() + pause > until:
                    break
            except TimeoutError:
                self.close()
                raise UnreachableError(
                    f"the policy server at {self.url} did not answer within {self._timeout_s:g} s"
                ) from None
            except TooLargeError:
                self.close()
                raise RemoteError(
                    f"the policy server at {self.url} answered {path} with more than {most_bytes} bytes"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                cut_short += isinstance(error, http.client.IncompleteRead)
                if not isinstance(error, (OSError, http.client.IncompleteRead)):
                    raise RemoteError(
                        f"the server at {self.url} is not a policy server ({one_line(error)})"
                    ) from None
                if cut_short == CUT_SHORT:
                    raise RemoteError(
                        f"the answers of the policy server at {self.url} end early ({one_line(error)})"
                    ) from None
                if time.monotonic() + pause > until:
                    raise UnreachableError(
                        f"no policy server answers at {self.url}; is it running? ({one_line(error)})"
                    ) from None
            except ValueError as error:  # raised by http.client for a head that it cannot parse
                self.close()
                raise RemoteError(
                    f"the server at {self.url} is not a policy server ({one_line(error)})"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        if 300 <= status < 400:
            raise RemoteError(
                f"the policy server at {self.url} redirects ({status}), which is not followed; name the"
                " address that answers"
            )
        if status != 200:
            line = printable(
                (answer.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            )
            if status == 410:
                raise LostSessionError(f"the policy server at {self.url}: {line}")
            raise RemoteError(f"the policy server at {self.url} refused ({status}): {line}")
        return answer

    def _once(self, method: str, path: str, most_bytes: int, body: bytes | None) -> tuple[int, bytes]:
        until = time.monotonic() + self._timeout_s
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._kind(
                self._host, self._port, timeout=self._timeout_s
            )
        if connection.sock is not None:
            # the last answer left a shorter timeout: the rest of its own
            connection.sock.settimeout(self._timeout_s)
        connection.response_class = partial(_Response, until=until, most_bytes=most_bytes)
        connection.request(
            method,
            self._path + path,
            body,
            self._headers | ({"Content-Type": "application/octet-stream"} if body else {}),
        )
        response = connection.getresponse()
        if response.status == 200:
            return 200, _read(response, most_bytes)
        try:
            return response.status, _read(response, REFUSAL_BYTES)
        except (TooLargeError, OSError, http.client.HTTPException):  # the status suffices
            self.close()
            return response.status, b""


class RemotePolicies:
    """One `Policy` behind several URLs. All requests go to one of them until it is unreachable, and then to
    the next; the sessions of a policy with memory stay where they began, or are lost.

    first: index of the URL that is asked first. The properties and `act` raise as those of RemotePolicy.
    """

    def __init__(self, urls: Sequence[str], first: int = 0, patience_s: float = 20.0) -> None:
        self._servers = [RemotePolicy(url, patience_s=patience_s) for url in urls]
        self._at = first % len(urls)

    @property
    def contract(self) -> Contract:
        """Conventions that the policy was trained with."""
        return self._first_answer(lambda server: server.contract)

    @property
    def memory(self) -> bool:
        """Whether the policy has memory."""
        return self._first_answer(lambda server: server.memory)

    @property
    def observation_steps(self) -> int:
        """Observations of consecutive control steps that the policy takes at once."""
        return self._first_answer(lambda server: server.observation_steps)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation. Raises LostSessionError if the server of a session is gone."""
        keeps = self.memory and any(observation.step for observation in observations)
        try:
            if keeps:
                return self._servers[self._at].act(observations)
        except UnreachableError as error:
            self._at = (self._at + 1) % len(self._servers)
            raise LostSessionError(str(error)) from None
        return self._first_answer(lambda server: server.act(observations))

    def _first_answer(self, ask: Callable[[RemotePolicy], T]) -> T:
        """Return the answer of the first server that can be reached, from the present one on."""
        for left in range(len(self._servers), 0, -1):
            try:
                return ask(self._servers[self._at])
            except UnreachableError:
                if left == 1:
                    raise
                self._at = (self._at + 1) % len(self._servers)
        raise AssertionError


def _read(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """Return the body of an answer; raise TooLargeError if it is larger, IncompleteRead if it ends before
    its Content-Length.
    """
    if response.length is not None and response.length > most_bytes:
        raise TooLargeError
    read = bytearray()
    while some := response.read(min(1 << 16, most_bytes + 1 - len(read))):
        read += some
        if len(read) > most_bytes:
            raise TooLargeError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(read)
