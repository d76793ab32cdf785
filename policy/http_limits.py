"""What both ends of the HTTP interface of policies share: the limits of what they read, and the token."""

import io
import socket
import time
from typing import Any

from policy.http_protocol import RemoteError

HEAD_BYTES = 1 << 16
"""Size limit in bytes of the head of an answer together with the lengths of its parts, and of the first line
of a request.
"""
TOKEN = "DEMOSCALE_POLICY_TOKEN"
"""Environment variable with the token that a client sends; empty or unset: none."""


class TooLargeError(Exception):
    """The peer sent more bytes than the limit allows."""


class BoundedReader(io.RawIOBase):
    """Raw stream of a socket with a deadline and a size limit; a read past either raises TimeoutError or
    TooLargeError.
    """

    def __init__(self, connection: socket.socket, until: float, left: float) -> None:
        self._connection = connection
        self._raw: Any = connection.makefile("rb", buffering=0)
        self.until = until
        """Deadline in seconds on the clock of `time.monotonic`."""
        self.left = left
        """Bytes that may still be received."""
        self.received = 0
        """Bytes received since this was last set to 0."""
        self.complete_s: float | None = None
        """Seconds from the next byte received to the new deadline; None: the deadline stays."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive into `buffer`; return the number of bytes. Raises TooLargeError or TimeoutError."""
        if self.left <= 0:
            raise TooLargeError
        if (seconds := self.until - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(seconds)
        size: int = self._raw.readinto(buffer)
        if size and self.complete_s is not None:
            self.until, self.complete_s = time.monotonic() + self.complete_s, None
        self.left -= size
        self.received += size
        return size

    def close(self) -> None:
        """Close the connection's stream as well."""
        if not self.closed:
            self._raw.close()
        super().close()


def bearer_of(token: str) -> str:
    """Return the Authorization header for a token, empty for none; raise RemoteError, which does not repeat
    the token, if no header can carry it.
    """
    if not all("!" <= letter <= "~" for letter in token):
        raise RemoteError(
            "the token of the policy server must be printable ASCII without spaces; write another one to"
            f" {TOKEN}"
        )
    return f"Bearer {token}" if token else ""
