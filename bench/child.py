"""A process of its own for one of the things that are compared, watched from outside."""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.sampler import Sampler

FETCHING, CONSUMER, RAY = "fetching actor", "training side", "Ray's own processes"
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Mark:
    """Where the processes stood when the child called its first argument."""

    time: float
    seconds: dict[str, float]
    """CPU time so far, by kind of process."""
    peak: dict[str, int]
    """Most private memory since the mark before, by kind of process."""

    def since(self, before: "Mark") -> dict[str, float]:
        """CPU seconds between two marks, by kind of process."""
        return {kind: used - before.seconds.get(kind, 0.0) for kind, used in self.seconds.items()}


def _kind_of(title: str) -> str:
    if "MapWorker" in title or "_Fetch" in title:
        return FETCHING
    return CONSUMER if "spawn_main" in title else RAY


def _serve(parent: Connection) -> None:
    def mark() -> None:
        parent.send((False, None))
        parent.recv()

    while job := parent.recv():
        function, arguments = job
        parent.send((True, function(mark, *arguments)))


class Child:
    """Runs one function after another. Each is called with `mark`, a function that waits until the processes
    were looked at.
    """

    def __init__(self) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        assert self._process.pid
        self._sampler = Sampler(self._process.pid, _kind_of)

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[list[Mark], Any]:
        """The marks it made, and its answer."""
        self._pipe.send((function, arguments))
        marks: list[Mark] = []
        while True:
            while not self._pipe.poll(0.25):
                self._sampler.sample()
            done, answer = self._pipe.recv()
            if done:
                return marks, answer
            self._sampler.sample()
            marks.append(Mark(time.monotonic(), dict(self._sampler.seconds), dict(self._sampler.peak)))
            self._sampler.peak.clear()
            self._pipe.send(None)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may have died
            self._pipe.send(None)
        self._process.join(30)
        self._process.kill()
