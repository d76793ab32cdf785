"""A training command's side: the job that the sweep hands over, the loop of steps, the report, checkpoints.

The job is the JSON file that the environment variable DEMOSCALE_TRAIN names; policies/README.md
describes its fields and the lines of the report. Standard library only: the command runs in its policy's own
environment.
"""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

TRAIN = "DEMOSCALE_TRAIN"
"""Environment variable with the path of the job."""
REPORT_EVERY = 10
"""Steps from one line of progress to the next; it is a second where training ends by time."""


@dataclass(frozen=True)
class TrainJob:
    """One run of a training command."""

    policy: Path
    """Folder of the policy's manifest."""
    data: Path
    """The arm's demonstrations, a folder or a file in the format that the manifest names."""
    format: str
    episodes: int
    frames: int
    contract: dict[str, Any]
    """`policy.interface.Contract` of the data, as JSON."""
    checkpoints: Path
    """Folder that every checkpoint is a folder of."""
    report: Path
    """JSON-lines file that progress and checkpoints are reported in."""
    resume: Path | None
    """Checkpoint to continue from; None: train from the start."""
    first_step: int
    """Optimiser steps that the checkpoint has behind it; 0 without one."""
    steps: int
    """Optimiser steps in all, those of the checkpoint included; 0 if training ends by time."""
    seconds: float
    """Seconds of training in all, those of the checkpoint included; 0 if training ends at a step."""
    first_second: float
    """Seconds of training that the checkpoint has behind it; 0 without one."""
    batch_size: int
    checkpoint_every: float
    """Steps from one checkpoint to the next, or seconds if training ends by time."""
    seed: int
    device: str
    threads: int
    options: dict[str, Any]
    """Settings of the policy: the manifest's, and over them the line's."""
    weights: list[float] = field(default_factory=list)
    """Share of the samples that come from each episode, in the order of the data; empty: by its frames."""

    @classmethod
    def read(cls) -> "TrainJob":
        """Return the job of this process. Raises SystemExit if there is none, or a field is missing."""
        stated = read_stated(TRAIN, [one.name for one in fields(cls)])
        paths = {name: Path(stated[name]) for name in ("policy", "data", "checkpoints", "report")}
        return cls(**{**stated, **paths, "resume": Path(stated["resume"]) if stated["resume"] else None})


def read_stated(variable: str, names: list[str]) -> dict[str, Any]:
    """Return the named fields of the JSON file that the environment variable names. Raises SystemExit with a
    sentence if there is none, or a field is missing.
    """
    if not (path := os.environ.get(variable)):
        raise SystemExit(f"{variable} is not set; this command is run by a sweep, which sets it")
    stated = json.loads(Path(path).read_text())
    if lacking := [name for name in names if name not in stated]:
        raise SystemExit(
            f"{path}: it lacks {', '.join(lacking)}; the sweep and this policy differ in version"
        )
    return {name: stated[name] for name in names}


def take_steps(
    job: TrainJob,
    step: Callable[[], float],
    save: Callable[[Path, int], None],
    on_share: Callable[[float], None] = lambda share: None,
) -> None:
    """Train from `job.first_step` to `job.steps`, or until `job.seconds` are used up, with a checkpoint every
    `job.checkpoint_every` steps or seconds and after the last step.

    step: takes one optimiser step and returns its loss; the time that it takes is what counts. save(folder,
    step): writes everything that continues the training, and everything that acts, into the empty folder.
    on_share: called before each step of a training that ends by time, with the part of the time that is used
    up, for schedules. At SIGTERM the current step is finished, a checkpoint is written, and the function
    returns. Raises SystemExit if a loss is not finite.
    """
    stop = _Stop()
    losses: list[float] = []
    number, seconds = job.first_step, job.first_second
    while seconds < job.seconds if job.seconds else number < job.steps:
        if job.seconds:
            on_share(seconds / job.seconds)
        began, before = time.perf_counter(), seconds
        losses.append(step())
        number += 1
        if job.seconds:
            seconds += time.perf_counter() - began
        line = {"step": number, **({"seconds": seconds} if job.seconds else {})}
        if not math.isfinite(losses[-1]):
            report_line(job.report, {**line, "loss": losses[-1]})
            raise SystemExit(f"step {number}: the loss is {losses[-1]}; lower the learning rate")
        if job.seconds:
            due = seconds >= job.seconds or seconds // job.checkpoint_every > before // job.checkpoint_every
        else:
            due = number == job.steps or number % job.checkpoint_every == 0
        if due or stop.asked:
            name = write_checkpoint(job.checkpoints, number, save)
            report_line(job.report, {**line, "loss": _mean(losses), "checkpoint": name})
        elif int(seconds) > int(before) if job.seconds else number % REPORT_EVERY == 0:
            report_line(job.report, {**line, "loss": _mean(losses)})
        else:
            continue
        losses = []
        if stop.asked:
            return


class _Stop:
    """Whether SIGTERM has arrived since this was made."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses)


def write_checkpoint(folder: Path, step: int, save: Callable[[Path, int], None]) -> str:
    """Write a checkpoint that has its name only when it is complete and on the disk; return the name."""
    name = f"step_{step:06d}"
    partial, whole = folder / f".{name}.partial", folder / name
    for leftover in (partial, whole):  # of a run that died before it reported the checkpoint
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial, step)
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    partial.rename(whole)
    _sync(folder)
    return name


def report_line(path: Path, line: dict[str, Any]) -> None:
    """Append one line, in one write, so that a reader meets no half line of a process that lives."""
    data = (json.dumps(line) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
