"""The measured speed of this machine on a sweep: written by `microbenchmark.py` to the sweep's storage, read
by every later plan.

calibrations/<digest>.json     digest of policy, training, conventions, suite and machine, all that the
                               seconds depend on
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from orchestrator.config.lines import Line
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.provenance import digest
from orchestrator.storage.base import open_storage
from orchestrator.storage.notes import read_json_object
from policy.config import VIDEO_ACTION
from sim_workers.envs.render_check import processor_name

NOT_OF_THE_SPEED = {
    "match",
    "seconds",
    "steps",
    "video_steps",
    "videos",
    "checkpoint_every",
    "learning_rate",
    "head_learning_rate",
    "schedule",
    "warmup_steps",
}
KEPT = "action, kept"
"""Key of the steps of an action head on cached features."""


@dataclass(frozen=True)
class Quantiles:
    """Seconds of repeated measurements: 10th percentile, median and 90th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quantiles":
        """Return the percentiles of measured seconds."""
        import numpy as np

        return cls(*(float(value) for value in np.quantile(seconds, (0.1, 0.5, 0.9))))


@dataclass(frozen=True)
class Timing:
    """Seconds of wall-clock time and of CPU time."""

    wall: Quantiles
    cpu: Quantiles

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Timing":
        """Return the spreads of pairs of (wall, CPU) seconds."""
        wall, cpu = zip(*pairs, strict=True)
        return cls(Quantiles.of(wall), Quantiles.of(cpu))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Timing":
        """Return the timing whose fields `Calibration.to_json` wrote."""
        return cls(Quantiles(**data["wall"]), Quantiles(**data["cpu"]))


@dataclass(frozen=True)
class Machine:
    """The hardware that the seconds depend on."""

    cpu: str
    cores: int
    """Number of cores that this process may use."""
    gpu: str
    """Name of the GPUs; empty without one."""
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, " + (f"{self.gpus} {self.gpu}" if self.gpus else "no GPU")

    @property
    def cluster(self) -> dict[str, float]:
        """Ray's resources of a cluster of this machine alone."""
        return {"CPU": float(self.cores), "GPU": float(self.gpus)}


@dataclass(frozen=True)
class Calibration:
    """Seconds measured on one machine for one sweep."""

    machine: Machine
    measured_at: str
    """Time of measurement, UTC, to the minute."""
    process_s: float
    """Seconds of wall-clock time until a training process has imported its libraries."""
    start: Timing
    """Time from the start of a training to its first step: loading the model."""
    steps: dict[str, Timing]
    """Time per optimiser step of one training worker, by `step_kind`, or KEPT."""
    kept_clips: int
    """Number of clips whose features a training worker caches; 0 without a cache."""
    answers: dict[str, Timing]
    """Time per batch of answers, by name of the line and rows, such as `video_action 1`."""
    build: Quantiles
    """Seconds to build a simulator; this, `reset` and `step` are 0 for a sweep of held-out episodes."""
    reset: Quantiles
    """Seconds to reset a simulator."""
    step: Quantiles
    """Seconds of a simulator per control step."""
    look: Quantiles
    """Seconds per observation, all cameras rendered, or read from a held-out episode."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Calibration":
        """Invert `to_json`. Raises KeyError or TypeError if a field is missing or unknown."""
        timed = {
            name: {key: Timing.from_json(value) for key, value in data[name].items()}
            for name in ("steps", "answers")
        }
        spreads = {name: Quantiles(**data[name]) for name in ("build", "reset", "step", "look")}
        return cls(
            **data
            | timed
            | spreads
            | {
                "machine": Machine(**data["machine"]),
                "start": Timing.from_json(data["start"]),
            }
        )


@lru_cache
def this_machine() -> Machine:
    """Return this machine, from the kernel and nvidia-smi, so that a plan imports no library for it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        gpus = re.findall(r"^GPU \d+: (.+?) \(UUID", listed.stdout, re.MULTILINE)
    return Machine(processor_name(), cores, gpus[0] if gpus else "", len(gpus))


def step_kind(sweep: SweepConfig, line: Line) -> str:
    """Return the key in `Calibration.steps` of a line's steps with an action head; those of an external line
    are not measured.
    """
    if line.plain:
        return sweep.train.objective if line.imagines else line.name
    return f"line {line.name}"


def stage_one_kind(line: Line) -> str:
    """Return the key in `Calibration.steps` of the steps of a line's video models."""
    return "video" if line.plain else f"video of line {line.name}"


def calibration_key(sweep: SweepConfig, machine: Machine) -> str:
    """Return the storage key of a calibration; the numbers of arms, steps and episodes do not change it."""
    own = [
        line.model_dump(mode="json", exclude=set() if line.settings else {"settings"})
        for line in sweep.lines
        if line.own and not line.plain
    ]
    plain = [line.name for line in sweep.lines if line.plain]
    if VIDEO_ACTION not in plain:
        own.append({"without": VIDEO_ACTION})
    facts: list[Any] = [
        sweep.policy.preset,
        sorted(name for name in plain if name != VIDEO_ACTION),
        sweep.train.recorded(NOT_OF_THE_SPEED),
        sweep.suite.contract_of(PinnedData.read(sweep).manifest(sweep).contract).to_json(),
        [
            sweep.suite.tasks[0] if sweep.suite.tasks else "held out",
            sweep.suite.gl,
            sweep.suite.rung,
            sweep.rollout_actors,
        ],
        asdict(machine),
        *own,
    ]
    settings = sweep.policy.settings.model_dump(mode="json", exclude_none=True)
    if settings or sweep.suite.sampler.chosen():
        facts.append([settings, sweep.suite.sampler.chosen()])
    return f"calibrations/{digest(facts)}.json"


def load_calibration(sweep: SweepConfig) -> Calibration | None:
    """Return the stored calibration of the sweep for a machine like this one; None if there is none."""
    storage, key = open_storage(sweep.storage), calibration_key(sweep, this_machine())
    return Calibration.from_json(read_json_object(storage, key)) if storage.exists(key) else None


def save_calibration(sweep: SweepConfig, calibration: Calibration) -> None:
    """Write a calibration to the sweep's storage, over an older one."""
    key = calibration_key(sweep, calibration.machine)
    open_storage(sweep.storage).put(key, json.dumps(calibration.to_json(), indent=1).encode())
