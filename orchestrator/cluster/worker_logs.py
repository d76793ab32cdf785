"""Redaction of what Ray's worker processes print: everyone on a node can read their logs."""

import logging
import sys
import threading
from collections.abc import Iterable
from typing import Any

from orchestrator.redaction import redact

LONGEST_LINE = 1 << 16
"""Characters of an unfinished line from which it is written."""


class RedactingStream:
    """Text stream that redacts whole lines before they are written; otherwise it behaves as the stream that
    it wraps.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._begun = ""
        """Beginning of the next line: `print` writes the name of a secret and its value one after the
        other.
        """

    def write(self, text: str) -> int:
        """Write the lines that the text completes without their secrets; return the length of the text."""
        with self._lock:
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            if end:
                self._stream.write(redact(lines + end))
            if len(self._begun) > LONGEST_LINE:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Write an unfinished line without its secrets, and flush the stream."""
        with self._lock:
            if self._begun:
                self._stream.write(redact(self._begun))
                self._begun = ""
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts without their secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Redact what this process prints and logs from now on."""
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    wrapped = {id(stream): RedactingStream(stream) for stream in streams.values()}
    for name, stream in streams.items():
        setattr(sys, name, wrapped[id(stream)])
    loggers = [
        logging.getLogger(),
        *(
            logger
            for logger in logging.root.manager.loggerDict.values()
            if isinstance(logger, logging.Logger)
        ),
    ]
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in wrapped:
                handler.setStream(wrapped[id(handler.stream)])
