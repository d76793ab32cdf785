"""What a sweep spends: added up by arm, kept beside its results, told in hours, bytes and money, and held against its budget.

costs/<sweep>/<run id>.json     what one run spent by arm, and when; written by that run alone
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
from orchestrator.storage.notes import read_notes
from sim_workers.rollout.episode import Outcome

IDLE_S = 30.0
"""Seconds between two writes of an account to which nothing is added: its wall-clock time still grows."""


@dataclass(frozen=True)
class Cost:
    """Seconds of devices and counts of work; costs add up."""

    train_gpu_s: float = 0.0
    train_cpu_s: float = 0.0
    infer_gpu_s: float = 0.0
    """Of policies that answer."""
    infer_cpu_s: float = 0.0
    sim_cpu_s: float = 0.0
    """Simulating and rendering."""
    control_steps: int = 0
    frames: int = 0
    """Pictures rendered for policies, of all cameras."""
    bytes_read: int = 0
    """From the episode store, by training."""
    episodes: int = 0
    """Rollouts that ended in success or failure."""

    @property
    def gpu_s(self) -> float:
        return self.train_gpu_s + self.infer_gpu_s

    @property
    def cpu_s(self) -> float:
        return self.train_cpu_s + self.infer_cpu_s + self.sim_cpu_s

    def money(self, prices: Prices) -> float:
        """In the currency of the prices."""
        return self.gpu_s / 3600 * prices.gpu_hour + self.cpu_s / 3600 * prices.cpu_hour + self.bytes_read / 2**30 * prices.gib_read

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __truediv__(self, parts: float) -> "Cost":
        """One of so many equal parts; counts are rounded."""
        shares = {name: value / parts for name, value in asdict(self).items()}
        return Cost(**{name: round(share) if isinstance(getattr(self, name), int) else share for name, share in shares.items()})

    def __str__(self) -> str:
        said = [f"{hours(self.gpu_s)} GPU-h"] if self.gpu_s else []
        said.append(f"{hours(self.cpu_s)} CPU-h")
        said += [f"{value:,} {name.replace('_', ' ')}" for name in ("episodes", "control_steps", "frames") if (value := getattr(self, name))]
        return ", ".join([*said, f"{size(self.bytes_read)} read"] if self.bytes_read else said)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cost":
        return cls(**data)


def hours(seconds: float) -> str:
    """Seconds in hours, with the digits that matter."""
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def size(nbytes: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def of_outcome(outcome: Outcome, cameras: int) -> Cost:
    """What playing an episode took. An error counts as no episode; its seconds count.

    Waiting for the policy is not in it: the policy server knows what its answers took.
    """
    return Cost(
        sim_cpu_s=outcome.sim_s,
        control_steps=outcome.steps,
        frames=outcome.looks * cameras,
        episodes=int(outcome.result != "error"),
    )


@dataclass(frozen=True)
class RunCost:
    """What one run of a sweep spent."""

    began: float
    """Unix time, in seconds."""
    last: float
    """When it last wrote so."""
    arms: dict[str, Cost]
    """By arm id."""

    @property
    def wall_s(self) -> float:
        return self.last - self.began

    def to_json(self) -> dict[str, Any]:
        return {"began": self.began, "last": self.last, "arms": {arm: cost.to_json() for arm, cost in self.arms.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunCost":
        return cls(data["began"], data["last"], {arm: Cost.from_json(cost) for arm, cost in data["arms"].items()})


@dataclass(frozen=True)
class Spent:
    """What all runs of a sweep spent, up to some moment."""

    runs: dict[str, RunCost]
    """By run id."""

    def by_arm(self) -> dict[str, Cost]:
        """By arm id, over all runs."""
        sums: defaultdict[str, Cost] = defaultdict(Cost)
        for run in self.runs.values():
            for arm_id, cost in run.arms.items():
                sums[arm_id] += cost
        return dict(sums)

    def total(self) -> Cost:
        """Over all arms and runs."""
        return added(cost for run in self.runs.values() for cost in run.arms.values())

    @property
    def wall_s(self) -> float:
        """On the clock, over all runs."""
        return sum(run.wall_s for run in self.runs.values())


def added(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


class Spending:
    """The account of a run that spends, and those of all earlier runs of its sweep. Safe for many threads; to be closed."""

    def __init__(self, storage: Storage, sweep_name: str, run_id: str, write_s: float = 2.0) -> None:
        """Open the run's account. ValueError if a run of this id has one already: no run may overwrite another's.

        write_s: minimum seconds between two writes, and so the most that a killed run loses.
        """
        self._storage, self._run_id, self._write_s = storage, run_id, write_s
        self._key = f"{_prefix(sweep_name)}{run_id}.json"
        self._began, self._monotonic = time.time(), time.monotonic()
        self._arms: defaultdict[str, Cost] = defaultdict(Cost)  # by this run
        self._changed, self._closed = False, False
        self._news, self._writing = threading.Condition(), threading.Lock()
        earlier = Spending.read(storage, sweep_name)
        self._earlier, self._earlier_wall_s, self._total = earlier.by_arm(), earlier.wall_s, earlier.total()
        if not claim(storage, self._key, self._encoded(self._run())):
            raise ValueError(f"{storage.uri}: a run {run_id} of {sweep_name} has an account already; every run needs an id of its own")
        self._thread = threading.Thread(target=self._write_often, name="costs", daemon=True)
        self._thread.start()

    @staticmethod
    def read(storage: Storage, sweep_name: str) -> Spent:
        """All accounts of a sweep as the storage has them: for onlookers."""
        return Spent({run_id: RunCost.from_json(told) for run_id, told in read_notes(storage, _prefix(sweep_name)).items()})

    def add(self, arm_id: str, cost: Cost) -> None:
        """Put it on the arm's account."""
        with self._news:
            self._arms[arm_id] += cost
            self._total += cost
            self._changed = True
            self._news.notify_all()

    def of(self, arm_id: str) -> Cost:
        """An arm's, over all runs."""
        with self._news:
            return self._earlier.get(arm_id, Cost()) + self._arms.get(arm_id, Cost())

    def by_arm(self) -> dict[str, Cost]:
        """By arm id, over all runs."""
        with self._news:
            return {arm_id: self.of(arm_id) for arm_id in {**self._earlier, **self._arms}}

    def total(self) -> Cost:
        """Over all arms and runs."""
        with self._news:
            return self._total

    @property
    def wall_s(self) -> float:
        """On the clock, over all runs."""
        return self._earlier_wall_s + self.run_wall_s

    @property
    def run_wall_s(self) -> float:
        """On the clock, of this run."""
        return time.monotonic() - self._monotonic

    def flush(self) -> None:
        """Write now; StorageError if it cannot be written."""
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
        """Write for the last time; a second time does nothing."""
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
            except StorageError:  # it may come back; `close` tells if it does not
                continue


def _prefix(sweep_name: str) -> str:
    return f"costs/{sweep_name}/"


def limits(budget: Budget, cost: Cost, wall_s: float) -> list[tuple[str, float, float, str]]:
    """Those that are set: the field, the limit, what the cost uses of it, and the unit."""
    told = (
        ("max_gpu_hours", budget.max_gpu_hours, cost.gpu_s / 3600, "GPU-hours"),
        ("max_episodes", budget.max_episodes, cost.episodes, "episodes"),
        ("max_wall", budget.max_wall, wall_s / 3600, "hours on the clock"),
    )
    return [(name, limit, used, unit) for name, limit, used, unit in told if limit is not None]


def exceeded(budget: Budget, spending: Spending) -> str:
    """Which limit is reached, as a sentence with the numbers; empty if none is."""
    for name, limit, used, unit in limits(budget, spending.total(), spending.run_wall_s):
        if used >= limit:
            return f"budget.{name} is {_number(limit)} {unit}, and {_number(used)} are spent; the same command goes on with a higher one"
    return ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
