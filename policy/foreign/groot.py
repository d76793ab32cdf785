"""Client of GR00T's policy server (github.com/NVIDIA/Isaac-GR00T, `gr00t/eval/run_gr00t_server.py`, N1.6).

A ZeroMQ request and its reply, both msgpack. `get_action` takes a batch of observations, pictures of shape
(B, T, H, W, 3) and states of (B, T, D) by name, and answers with actions of (B, T, D) by name.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from policy.foreign import messages
from policy.foreign.layout import Layout, chunk_of
from policy.http_policy import UnreachableError
from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, Contract, Observation
from policy.untrusted import printable


class GrootPolicy:
    """The `Policy` of a GR00T server that takes the present observation. Usable from several threads; each
    has its own connection.

    execute: actions of a chunk that are executed; 0: all. timeout_s: seconds until an answer, from a server
    that may still have to start. `act` raises RemoteError.
    """

    def __init__(
        self, address: str, contract: Contract, layout: Layout, execute: int = 0, timeout_s: float = 120.0
    ) -> None:
        self.contract, self._address, self._layout, self._execute = contract, address, layout, execute
        self._timeout_s, self._where = timeout_s, f"the GR00T server at {address}"
        self._of_thread = threading.local()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, from one request."""
        if not observations:
            return []
        pictures = [self._layout.pictures(observation) for observation in observations]
        vectors = [self._layout.vectors(observation) for observation in observations]
        batch: dict[str, Any] = {
            "video": {name: np.stack([one[name] for one in pictures])[:, None] for name in pictures[0]},
            "state": {name: np.stack([one[name] for one in vectors])[:, None] for name in vectors[0]},
        }
        if self._layout.instruction:
            batch["language"] = {self._layout.instruction: [[one.instruction] for one in observations]}
        content = self._asked(
            {"endpoint": "get_action", "data": {"observation": batch, "options": None}}, len(observations)
        )
        actions = content[0] if isinstance(content, list) and content else content
        if not isinstance(actions, dict) or any(name not in actions for name in self._layout.actions):
            raise RemoteError(
                f"{self._where} answered without {', '.join(printable(n, 60) for n in self._layout.actions)}"
            )
        parts = [np.asarray(actions[name]) for name in self._layout.actions]
        if any(part.ndim != 3 or part.shape[:2] != (len(observations), parts[0].shape[1]) for part in parts):
            shapes = ", ".join(printable(str(part.shape), 60) for part in parts)
            raise RemoteError(
                f"{self._where} answered {len(observations)} observations with actions of {shapes}"
            )
        joined = np.concatenate(parts, axis=2)
        return [chunk_of(chunk, self.contract, self._execute, self._where) for chunk in joined]

    def _asked(self, request: dict[str, Any], many: int) -> Any:
        most_bytes = messages.answer_bytes(self.contract, many)
        connection = self._connected(most_bytes)
        try:
            connection.send(messages.pack(request, _encode))
            until = time.monotonic() + self._timeout_s
            if not connection.poll(max(0, int(1e3 * (until - time.monotonic())))):
                raise UnreachableError(f"{self._where} did not answer within {self._timeout_s:g} s")
            answer = connection.recv()
        except (UnreachableError, zmq.ZMQError) as error:
            self.close()  # a socket that awaits a reply sends no other request
            if isinstance(error, zmq.ZMQError):
                raise UnreachableError(f"{self._where} cannot be asked ({error})") from None
            raise
        content = messages.unpack(answer, _decode, most_bytes, self._where)
        if isinstance(content, dict) and "error" in content:
            raise RemoteError(f"{self._where} failed: {printable(str(content['error']))}")
        return content

    def _connected(self, most_bytes: int) -> Any:
        connection = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = zmq.Context.instance().socket(zmq.REQ)
            connection.setsockopt(zmq.LINGER, 0)
            connection.setsockopt(zmq.MAXMSGSIZE, most_bytes)
            connection.connect(f"tcp://{self._address}")
        return connection

    def close(self) -> None:
        """Close the connection of the calling thread."""
        if connection := getattr(self._of_thread, "connection", None):
            connection.close()
            self._of_thread.connection = None


def _encode(values: npt.NDArray[Any]) -> dict[Any, Any]:
    return {"__ndarray_class__": True, "as_npy": messages.npy_bytes(values)}


def _decode(value: dict[Any, Any]) -> Any:
    return messages.npy_array(value["as_npy"]) if "__ndarray_class__" in value else value
