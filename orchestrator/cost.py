"""Accounting of a sweep's cost: summed by arm, kept with its results, reported in hours, bytes and money, and
compared with its budget.

costs/<sweep>/<run id>.json     cost of one run by arm, with its times; written by that run alone
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from orchestrator.config.schema import Budget, Prices
from orchestrator.storage.base import Storage, StorageError, claim
from orchestrator.storage.notes import read_json_objects
from sim_workers.rollout.episode import Outcome

IDLE_S = 30.0
"""Seconds between two writes of an unchanged account, whose wall-clock time still grows."""


@dataclass(frozen=True)
class Cost:
    """Device seconds and counts of work; costs can be added."""

    train_gpu_s: float = 0.0
    train_cpu_s: float = 0.0
    infer_gpu_s: float = 0.0
    """GPU seconds of the policy servers."""
    infer_cpu_s: float = 0.0
    sim_cpu_s: float = 0.0
    """CPU seconds of simulating and rendering."""
    control_steps: int = 0
    frames: int = 0
    """Number of pictures rendered for policies, over all cameras."""
    bytes_read: int = 0
    """Bytes that training read from the episode store."""
    episodes: int = 0
    """Number of rollouts that ended in success or failure."""

    @property
    def gpu_s(self) -> float:
        """GPU seconds of training and inference."""
        return self.train_gpu_s + self.infer_gpu_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds of training, inference and simulation."""
        return self.train_cpu_s + self.infer_cpu_s + self.sim_cpu_s

    def money(self, prices: Prices) -> float:
        """Return the cost in the currency of the prices."""
        return (
            self.gpu_s / 3600 * prices.gpu_hour
            + self.cpu_s / 3600 * prices.cpu_hour
            + self.bytes_read / 2**30 * prices.gib_read
        )

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __truediv__(self, parts: float) -> "Cost":
        """Return one of `parts` equal shares; counts are rounded."""
        shares = {name: value / parts for name, value in asdict(self).items()}
        return Cost(
            **{
                name: round(share) if isinstance(getattr(self, name), int) else share
                for name, share in shares.items()
            }
        )

    def __str__(self) -> str:
        said = [f"{hours(self.gpu_s)} GPU-h"] if self.gpu_s else []
        said.append(f"{hours(self.cpu_s)} CPU-h")
        said += [
            f"{value:,} {name.replace('_', ' ')}"
            for name in ("episodes", "control_steps", "frames")
            if (value := getattr(self, name))
        ]
        return ", ".join([*said, f"{size(self.bytes_read)} read"] if self.bytes_read else said)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cost":
        """Invert `to_json`."""
        return cls(**data)


def hours(seconds: float) -> str:
    """Return seconds as a number of hours: 0 to 3 decimals, by magnitude."""
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def size(nbytes: float) -> str:
    """Return bytes in MiB or GiB, with unit."""
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def of_outcome(outcome: Outcome, cameras: int) -> Cost:
    """Return the cost of playing an episode. An error counts its seconds, but not as an episode.

    Time waiting for the policy is left out: the policy server accounts for its answers.
    """
    return Cost(
        sim_cpu_s=outcome.sim_s,
        control_steps=outcome.steps,
        frames=outcome.looks * cameras,
        episodes=int(outcome.result != "error"),
    )


@dataclass(frozen=True)
class RunCost:
    """Cost of one run of a sweep."""

    began: float
    """Start of the run, Unix time in seconds."""
    last: float
    """Last write of the account, Unix time in seconds."""
    arms: dict[str, Cost]
    """Cost by arm id."""

    @property
    def wall_s(self) -> float:
        """Seconds of wall-clock time."""
        return self.last - self.began

    def to_json(self) -> dict[str, Any]:
        """Return the content of an account's file, JSON-safe."""
        return {
            "began": self.began,
            "last": self.last,
            "arms": {arm: cost.to_json() for arm, cost in self.arms.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunCost":
        """Invert `to_json`. Raises KeyError or TypeError if a field is missing or unknown."""
        return cls(
            data["began"], data["last"], {arm: Cost.from_json(cost) for arm, cost in data["arms"].items()}
        )


@dataclass(frozen=True)
class Spent:
    """Cost of all runs of one sweep or of several, as of the time of reading."""

    runs: dict[str, RunCost]
    """Cost of every run, by its id."""

    def by_arm(self) -> dict[str, Cost]:
        """Return the cost by arm id, over all runs."""
        sums: defaultdict[str, Cost] = defaultdict(Cost)
        for run in self.runs.values():
            for arm_id, cost in run.arms.items():
                sums[arm_id] += cost
        return dict(sums)

    def total(self) -> Cost:
        """Return the cost over all arms and runs."""
        return added(cost for run in self.runs.values() for cost in run.arms.values())

    @property
    def wall_s(self) -> float:
        """Seconds of wall-clock time, over all runs."""
        return sum(run.wall_s for run in self.runs.values())


def added(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    return sum(costs, Cost())


class CostLedger:
    """The account of the current run, and the sums of all earlier runs of its sweep. Thread-safe; must be
    closed.
    """

    def __init__(self, storage: Storage, sweep_name: str, run_id: str, write_s: float = 2.0) -> None:
        """Open the run's account. Raises ValueError if a run of this id has one already: no run may overwrite
        another's.

        write_s: minimum seconds between two writes, and so the most that a killed run loses.
        """
        self._storage, self._run_id, self._write_s = storage, run_id, write_s
        self._key = f"{_prefix(sweep_name)}{run_id}.json"
        self._began, self._monotonic = time.time(), time.monotonic()
        self._arms: defaultdict[str, Cost] = defaultdict(Cost)  # by this run
        self._changed, self._closed = False, False
        self._news, self._writing = threading.Condition(), threading.Lock()
        earlier = CostLedger.read(storage, sweep_name)
        self._earlier, self._earlier_wall_s, self._total = earlier.by_arm(), earlier.wall_s, earlier.total()
        if not claim(storage, self._key, self._encoded(self._run())):
            raise ValueError(
                f"{storage.uri}: a run {run_id} of {sweep_name} has an account already; give this run another"
                " id"
            )
        self._thread = threading.Thread(target=self._write_often, name="costs", daemon=True)
        self._thread.start()

    @staticmethod
    def read(storage: Storage, sweep_name: str) -> Spent:
        """Read all accounts of a sweep from the storage, for processes other than its driver."""
        return _read(storage, _prefix(sweep_name))

    @staticmethod
    def read_all(storage: Storage) -> Spent:
        """Read the accounts of all sweeps of the storage. Sweeps that have an arm in common train it once, so
        one of them was charged for it.
        """
        return _read(storage, "costs/")

    def add(self, arm_id: str, cost: Cost) -> None:
        """Add a cost to the arm's account."""
        with self._news:
            self._arms[arm_id] += cost
            self._total += cost
            self._changed = True
            self._news.notify_all()

    def of(self, arm_id: str) -> Cost:
        """Return an arm's cost over all runs."""
        with self._news:
            return self._earlier.get(arm_id, Cost()) + self._arms.get(arm_id, Cost())

    def by_arm(self) -> dict[str, Cost]:
        """Return the cost by arm id, over all runs."""
        with self._news:
            return {arm_id: self.of(arm_id) for arm_id in {**self._earlier, **self._arms}}

    def total(self) -> Cost:
        """Return the cost over all arms and runs."""
        with self._news:
            return self._total

    @property
    def wall_s(self) -> float:
        """Seconds of wall-clock time, over all runs."""
        return self._earlier_wall_s + self.run_wall_s

    @property
    def run_wall_s(self) -> float:
        """Seconds of wall-clock time of this run."""
        return time.monotonic() - self._monotonic

    def flush(self) -> None:
        """Write the account now. Raises StorageError if it cannot be written."""
        with self._writing:
            with self._news:
                self._changed = False
            try:
                self._storage.put(self._key, self._encoded(self._run()))
            except StorageError:
                with self._news:
                    self._changed = True
                raise

    def close(self) -> None:
        """Stop the thread and write the account. Idempotent. Raises StorageError if it cannot be written."""
        with self._news:
            if self._closed:
                return
            self._closed = True
            self._news.notify_all()
        self._thread.join()
        self.flush()

    def _run(self) -> RunCost:
        with self._news:
            return RunCost(self._began, self._began + self.run_wall_s, dict(self._arms))

    def _encoded(self, run: RunCost) -> bytes:
        return json.dumps(run.to_json(), indent=1).encode()

    def _write_often(self) -> None:
        written = time.monotonic() - self._write_s
        while True:
            with self._news:
                self._news.wait_for(lambda: self._changed or self._closed, IDLE_S)
                self._news.wait_for(lambda: self._closed, written + self._write_s - time.monotonic())
                if self._closed:
                    return
            written = time.monotonic()
            try:
                self.flush()
            except StorageError:  # retried; `close` raises if the storage stays unavailable
                continue


def _read(storage: Storage, prefix: str) -> Spent:
    return Spent({run: RunCost.from_json(told) for run, told in read_json_objects(storage, prefix).items()})


def _prefix(sweep_name: str) -> str:
    return f"costs/{sweep_name}/"


def limits(budget: Budget, cost: Cost, wall_s: float) -> list[tuple[str, float, float, str]]:
    """Return the limits that are set: field, limit, amount used, and unit."""
    told = (
        ("max_gpu_hours", budget.max_gpu_hours, cost.gpu_s / 3600, "GPU-hours"),
        ("max_episodes", budget.max_episodes, cost.episodes, "episodes"),
        ("max_wall", budget.max_wall, wall_s / 3600, "hours of wall clock"),
    )
    return [(name, limit, used, unit) for name, limit, used, unit in told if limit is not None]


def exceeded(budget: Budget, spending: CostLedger) -> str:
    """Return one sentence with the numbers of the limit that is reached; empty if none is."""
    for name, limit, used, unit in limits(budget, spending.total(), spending.run_wall_s):
        if used >= limit:
            return (
                f"budget.{name} is {_number(limit)} {unit}, and {_number(used)} are spent; raise it and run"
                " the same command to resume"
            )
    return ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
