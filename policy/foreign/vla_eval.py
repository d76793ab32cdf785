"""Client of vla-eval's model servers (`vla-eval` 0.8.0, protocol version 1).

A websocket. Each message is a msgpack object with `type`, `payload`, `seq` and `timestamp`. A connection is a
session: after a greeting, `episode_start` begins an episode, and every observation is answered with one
action or a chunk. The server keeps what it needs of an episode, such as the rest of a chunk, so its policies
have memory.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.foreign import messages
from policy.foreign.layout import Layout, chunk_of
from policy.foreign.websocket import BrokenError, Websocket
from policy.http_policy import UnreachableError
from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, Contract, LostSessionError, Observation
from policy.sessions import lost
from policy.untrusted import printable

PROTOCOL = 1
MOST_SESSIONS = 8
"""Maximum number of sessions, each of which is a connection; a further one ends the one idle longest."""


class VlaEvalPolicy:
    """The `Policy` of a vla-eval model server, with a connection for every session. Not for several threads
    at once.

    execute: actions of a chunk that are executed; 0: all. patience_s: seconds for which connecting is
    retried; timeout_s: seconds until an answer. `act` raises RemoteError and LostSessionError.
    """

    memory = True

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
        self._where = f"the vla-eval server at {address}"
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, asked one by one."""
        for observation in observations:
            if observation.step and observation.episode not in self._sessions:
                raise lost(observation)
        return [self._one(observation) for observation in observations]

    def _one(self, observation: Observation) -> ActionChunk:
        session = observation.episode
        try:
            if observation.step == 0:
                self._begin(observation)
            self._sessions.move_to_end(session)
            message: dict[str, Any] = {"images": self._layout.pictures(observation)}
            message |= self._layout.vectors(observation)
            if self._layout.instruction:
                message[self._layout.instruction] = observation.instruction
            content = self._sessions[session].asked("observation", message, "action")
        except (BrokenError, UnreachableError) as error:
            self._end(session)
            if isinstance(error, UnreachableError) and observation.step == 0:
                raise
            raise LostSessionError(f"{self._where} lost a session: {error}") from None
        (name,) = self._layout.actions
        if name not in content:
            raise RemoteError(f"{self._where} answered without {printable(name, 60)}")
        return chunk_of(np.asarray(content[name]), self.contract, self._execute, self._where)

    def _begin(self, observation: Observation) -> None:
        self._end(observation.episode)
        most_bytes = messages.answer_bytes(self.contract)
        connection = Websocket(self._address, most_bytes, self._patience_s, self._timeout_s)
        session = self._sessions[observation.episode] = _Session(connection, most_bytes, self._where)
        session.asked("hello", {"harness_version": "demoscale", "protocol_version": PROTOCOL}, "hello")
        session.send("episode_start", {"task": {"name": observation.instruction}})
        while len(self._sessions) > MOST_SESSIONS:
            self._end(next(iter(self._sessions)))

    def _end(self, session: str) -> None:
        if ended := self._sessions.pop(session, None):
            ended.close()


class _Session:
    """One connection in one episode."""

    def __init__(self, connection: Websocket, most_bytes: int, where: str) -> None:
        self._connection, self._most_bytes, self._where = connection, most_bytes, where
        self._seq = 0

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        self._seq += 1
        message = {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        self._connection.send(messages.pack(message, _encode))

    def asked(self, kind: str, payload: dict[str, Any], answer: str) -> dict[Any, Any]:
        """Return the payload of the answer, whose type must be `answer`."""
        self.send(kind, payload)
        data = self._connection.receive()
        if isinstance(data, str):
            raise RemoteError(
                f"{self._where} sent a text, {printable(data, 200)}, where vla-eval sends bytes"
            )
        message = messages.unpack(data, _decode, self._most_bytes, self._where)
        said, content = (
            (message.get("type"), message.get("payload")) if isinstance(message, dict) else (None, None)
        )
        if not isinstance(content, dict) or said not in (answer, "error"):
            raise RemoteError(f"{self._where} answered {kind} with {printable(repr(said), 60)}")
        if said == "error":
            raise RemoteError(f"{self._where} failed: {printable(str(content.get('error', content)))}")
        return content

    def close(self) -> None:
        with suppress(BrokenError):
            self.send("episode_end", {})
        self._connection.close()


def _encode(values: npt.NDArray[Any]) -> dict[Any, Any]:
    return {
        "__ndarray__": True,
        "data": values.tobytes(),
        "dtype": values.dtype.str,
        "shape": list(values.shape),
    }


def _decode(value: dict[Any, Any]) -> Any:
    if "__ndarray__" not in value:
        return value
    return messages.plain_array(value["data"], value["dtype"], value["shape"])
