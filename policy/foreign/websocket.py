"""A websocket to a foreign policy server, with a deadline for every message."""

import time
from typing import Any

import websockets.exceptions
import websockets.sync.client

from policy.http_policy import UnreachableError
from policy.http_protocol import one_line


class BrokenError(Exception):
    """The connection broke before the answer."""


class Websocket:
    """One connection. patience_s: seconds for which connecting is retried; timeout_s: seconds until an
    answer.
    """

    def __init__(self, address: str, most_bytes: int, patience_s: float, timeout_s: float) -> None:
        """Connect. Raises UnreachableError if no server answers within `patience_s`."""
        self._address, self._timeout_s = address, timeout_s
        until, pause = time.monotonic() + patience_s, 0.05
        while True:
            try:
                self._socket: Any = websockets.sync.client.connect(
                    f"ws://{address}", compression=None, max_size=most_bytes, open_timeout=timeout_s
                )
                return
            except (OSError, websockets.exceptions.WebSocketException) as error:
                if time.monotonic() + pause > until:
                    raise UnreachableError(
                        f"no policy server answers at {address}; is it running? ({one_line(error)})"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def send(self, message: bytes) -> None:
        """Send one message. Raises BrokenError."""
        try:
            self._socket.send(message)
        except (OSError, websockets.exceptions.WebSocketException) as error:
            raise BrokenError(one_line(error)) from None

    def receive(self) -> bytes | str:
        """Return the next message. Raises BrokenError, and UnreachableError if none comes in time."""
        try:
            answer: bytes | str = self._socket.recv(timeout=self._timeout_s)
            return answer
        except TimeoutError:
            self.close()
            raise UnreachableError(
                f"the policy server at {self._address} did not answer within {self._timeout_s:g} s"
            ) from None
        except (OSError, websockets.exceptions.WebSocketException) as error:
            raise BrokenError(one_line(error)) from None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
