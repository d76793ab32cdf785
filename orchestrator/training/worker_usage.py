"""Resource usage of a training worker, part of every report."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SPENT = ("cpu_s", "wall_s", "bytes_read", "clips", "steps", "step_s", "stall_s")
"""Metrics of a training worker since its last report.

CPU seconds of its process, seconds of wall-clock time, bytes of fetched episodes, clips trained on, optimiser
steps, seconds in them, and seconds in which they waited for data."""

_T = TypeVar("_T")


class Meter:
    """Meter of SPENT in this process, since its creation or the last `read`."""

    def __init__(self) -> None:
        self._bytes = self._clips = self._steps = 0
        self._step_s = self._stall_s = 0.0
        self._stepping = 0.0
        """Start of the current step on `time.perf_counter`; 0 while there is none."""
        self._before = self._now()

    def fetched(self, nbytes: int) -> None:
        """Count fetched bytes; to be called by the one thread that fetches."""
        self._bytes += nbytes

    def steps_of(self, batches: Iterable[_T], clips: int) -> Iterator[_T]:
        """Yield the same batches, of `clips` clips each; a step lasts from a batch's arrival to `stepped` or
        the request for the next batch.
        """
        asked = time.perf_counter()
        for batch in batches:
            self._stepping = time.perf_counter()
            self._stall_s += self._stepping - asked
            yield batch
            self.stepped(clips)
            asked = time.perf_counter()

    def stepped(self, clips: int) -> None:
        """End the current step, so that what follows, such as saving, is not counted in it."""
        if self._stepping:
            self._step_s += time.perf_counter() - self._stepping
            self._clips += clips
            self._steps += 1
            self._stepping = 0.0

    def read(self) -> dict[str, float]:
        """Return SPENT since the last call, by name."""
        before, self._before = self._before, self._now()
        return {name: now - then for name, then, now in zip(SPENT, before, self._before, strict=True)}

    def _now(self) -> tuple[float, ...]:
        return (
            time.process_time(),
            time.perf_counter(),
            self._bytes,
            self._clips,
            self._steps,
            self._step_s,
            self._stall_s,
        )
