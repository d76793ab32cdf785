"""How fast this machine does what a sweep asks for: measured once by `calibrate.py`, kept with the sweep's results, read by every plan after.

calibrations/<digest>.json     of policy, training, conventions, suite and machine: whatever else differs, the seconds are the same
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

from orchestrator.config.sweep_config import Sweep
from orchestrator.data.episode_store import load_manifest
from orchestrator.provenance import digest
from orchestrator.storage.base import open_storage
from sim_workers.envs.render_check import processor_name

NOT_OF_THE_SPEED = {"steps", "video_steps", "videos", "checkpoint_every", "learning_rate", "head_learning_rate", "schedule", "warmup_steps"}
KEPT = "action, kept"
"""Steps of an action head on features that were computed before."""


@dataclass(frozen=True)
class Spread:
    """Seconds of the same thing, measured again and again: the 10th percentile, the median, the 90th."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        import numpy as np

        return cls(*(float(value) for value in np.quantile(seconds, (0.1, 0.5, 0.9))))


@dataclass(frozen=True)
class Timed:
    """Seconds on the clock, and of CPU cores."""

    wall: Spread
    cpu: Spread

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Timed":
        """Of (wall, CPU) seconds."""
        wall, cpu = zip(*pairs, strict=True)
        return cls(Spread.of(wall), Spread.of(cpu))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Timed":
        return cls(Spread(**data["wall"]), Spread(**data["cpu"]))


@dataclass(frozen=True)
class Machine:
    """What seconds depend on."""

    cpu: str
    cores: int
    """That this process may use."""
    gpu: str
    """Name; empty for none."""
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, " + (f"{self.gpus} {self.gpu}" if self.gpus else "no GPU")

    @property
    def cluster(self) -> dict[str, float]:
        """As Ray would see it alone."""
        return {"CPU": float(self.cores), "GPU": float(self.gpus)}


@dataclass(frozen=True)
class Calibration:
    """Seconds, as measured on a machine for a sweep."""

    machine: Machine
    measured_at: str
    """UTC, to the minute."""
    process_s: float
    """On the clock, until a training process has loaded its libraries."""
    start: Timed
    """From the start of a training to its first step: loading the model."""
    steps: dict[str, Timed]
    """Per optimiser step of one training worker, by objective; KEPT; and `diffusion_policy`, the baseline's."""
    kept_clips: int
    """Clips whose features a training worker keeps; 0 where none are."""
    answers: dict[str, Timed]
    """Per batch of answers, by kind of policy and rows, such as `video_action 1`."""
    build: Spread
    """Of a simulator."""
    reset: Spread
    step: Spread
    """Of a simulator, per control step."""
    look: Spread
    """Per look through all cameras."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Calibration":
        timed = {name: {key: Timed.from_json(value) for key, value in data[name].items()} for name in ("steps", "answers")}
        spreads = {name: Spread(**data[name]) for name in ("build", "reset", "step", "look")}
        return cls(**data | timed | spreads | {"machine": Machine(**data["machine"]), "start": Timed.from_json(data["start"])})


@lru_cache
def this_machine() -> Machine:
    """Asks the kernel and the GPU driver's own tool, so that a plan loads no library for it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        gpus = re.findall(r"^GPU \d+: (.+?) \(UUID", listed.stdout, re.MULTILINE)
    return Machine(processor_name(), cores, gpus[0] if gpus else "", len(gpus))


def calibration_key(sweep: Sweep, machine: Machine) -> str:
    """Of all that the seconds depend on; not of how many arms, steps and episodes there are."""
    facts = [
        sweep.policy.preset,
        sorted(sweep.policy.baselines),
        sweep.train.model_dump(mode="json", exclude=NOT_OF_THE_SPEED),
        load_manifest(open_storage(sweep.data.episodes)).contract.to_json(),
        [sweep.suite.tasks[0], sweep.suite.gl, sweep.suite.rung, sweep.rollout_actors],
        asdict(machine),
    ]
    return f"calibrations/{digest(facts)}.json"


def known_calibration(sweep: Sweep) -> Calibration | None:
    """What was measured before on a machine like this one; None if nothing was."""
    storage, key = open_storage(sweep.storage), calibration_key(sweep, this_machine())
    return Calibration.from_json(json.loads(storage.get(key))) if storage.exists(key) else None


def keep_calibration(sweep: Sweep, calibration: Calibration) -> None:
    """For the plans after; replaces an older one."""
    key = calibration_key(sweep, calibration.machine)
    open_storage(sweep.storage).put(key, json.dumps(calibration.to_json(), indent=1).encode())
