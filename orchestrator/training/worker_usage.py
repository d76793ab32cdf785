"""Resource usage of a training worker, part of every report."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class WorkerUsage:
    """Resources that a training worker used since its last report."""

    cpu_s: float = 0.0
    """CPU seconds of the worker's process."""
    wall_s: float = 0.0
    """Seconds of wall-clock time."""
    bytes_read: int = 0
    """Bytes of fetched episodes."""
    clips: int = 0
    """Clips trained on."""
    steps: int = 0
    """Optimiser steps."""
    step_s: float = 0.0
    """Seconds in optimiser steps."""
    stall_s: float = 0.0
    """Seconds in which optimiser steps waited for data."""

    @classmethod
    def total(cls, workers: Iterable["WorkerUsage"]) -> "WorkerUsage":
        """Return the sum over workers."""
        several = [*workers]
        return cls(**{name: sum(getattr(usage, name) for usage in several) for name in USAGE})

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> "WorkerUsage":
        """Return the usage among a report's metrics; what is missing there counts as 0."""
        return cls(**{name: metrics[name] for name in USAGE if name in metrics})

    def __sub__(self, other: "WorkerUsage") -> "WorkerUsage":
        return WorkerUsage(**{name: getattr(self, name) - getattr(other, name) for name in USAGE})


USAGE = tuple(field.name for field in fields(WorkerUsage))
"""Names of a worker's usage among the metrics of a report."""


class Meter:
    """Meter of this process's usage, since its creation or the last `read`."""

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

    def read(self) -> WorkerUsage:
        """Return the usage since the last call."""
        before, self._before = self._before, self._now()
        return self._before - before

    def _now(self) -> WorkerUsage:
        return WorkerUsage(
            cpu_s=time.process_time(),
            wall_s=time.perf_counter(),
            bytes_read=self._bytes,
            clips=self._clips,
            steps=self._steps,
            step_s=self._step_s,
            stall_s=self._stall_s,
        )
