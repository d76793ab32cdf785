"""Client of openpi's policy server (github.com/Physical-Intelligence/openpi, `scripts/serve_policy.py`).

A websocket. The server sends its metadata first; then every message is one observation, a flat msgpack
object, and every answer an object with `actions` (T, A), or a text with the traceback of its error.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from policy.foreign import messages
from policy.foreign.layout import Layout, chunk_of
from policy.foreign.websocket import BrokenError, Websocket
from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, Contract, Observation
from policy.untrusted import printable

TRIES = 3
"""Connections on which a query is tried; a query changes nothing on the server."""


class OpenpiPolicy:
    """The `Policy` of an openpi server. Usable from several threads; each has its own connection.

    execute: actions of a chunk that are executed; 0: all. patience_s: seconds for which connecting is
    retried; timeout_s: seconds until an answer. `act` raises RemoteError.
    """

    def __init__(
        self,
        address: str,
        contract: Contract,
        layout: Layout,
        execute: int = 0,
        patience_s: float = 20.0,
        timeout_s: float = 120.0,
    ) -> None:
        self.contract, self._address, self._layout, self._execute = contract, address, layout, execute
        self._patience_s, self._timeout_s = patience_s, timeout_s
        self._where = f"the openpi server at {address}"
        self._of_thread = threading.local()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, asked one by one: the protocol has no batches."""
        return [self._one(observation) for observation in observations]

    def _one(self, observation: Observation) -> ActionChunk:
        message: dict[str, Any] = {
            **self._layout.pictures(observation),
            **self._layout.vectors(observation),
        }
        if self._layout.instruction:
            message[self._layout.instruction] = observation.instruction
        answer = self._asked(messages.pack(message, _encode))
        if isinstance(answer, str):
            self.close()  # the server closes it too
            raise RemoteError(f"{self._where} failed: {_last_line(answer)}")
        content = messages.unpack(answer, _decode, messages.answer_bytes(self.contract), self._where)
        (name,) = self._layout.actions
        if not isinstance(content, dict) or name not in content:
            raise RemoteError(f"{self._where} answered without {printable(name, 60)}")
        return chunk_of(content[name], self.contract, self._execute, self._where)

    def _asked(self, message: bytes) -> bytes | str:
        for left in range(TRIES, 0, -1):
            try:
                connection = self._connected()
                connection.send(message)
                return connection.receive()
            except BrokenError as error:
                self.close()
                if left == 1:
                    raise RemoteError(f"{self._where} closes the connection ({error})") from None
        raise AssertionError

    def _connected(self) -> Websocket:
        connection: Websocket | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            most_bytes = messages.answer_bytes(self.contract)
            connection = Websocket(self._address, most_bytes, self._patience_s, self._timeout_s)
            self._of_thread.connection = connection
            connection.receive()  # metadata
        return connection

    def close(self) -> None:
        """Close the connection of the calling thread."""
        if connection := getattr(self._of_thread, "connection", None):
            connection.close()
            self._of_thread.connection = None


def _last_line(text: str) -> str:
    return printable((text.strip().splitlines() or ["no reason given"])[-1])


def _encode(values: npt.NDArray[Any]) -> dict[Any, Any]:
    return {
        b"__ndarray__": True,
        b"data": values.tobytes(),
        b"dtype": values.dtype.str,
        b"shape": values.shape,
    }


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value:
        return value
    return messages.plain_array(value[b"data"], value[b"dtype"], value[b"shape"])
