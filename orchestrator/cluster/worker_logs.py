"""Redaction of what Ray's worker processes print: everyone on a node can read their logs."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from orchestrator.redaction import redact


class RedactingStream:
    """Text stream that redacts every text before it is written; otherwise it behaves as the stream that it
    wraps.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without its secrets; return the length of the given text."""
        self._stream.write(redact(text))
        return len(text)

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
