"""Whole sweeps with a fake trainer and fake simulators; fixtures `store` and `folder` (conftest) are their
arguments.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.report.sample_efficiency_curve import Curve, curve_from_mlflow
from orchestrator.sweep.eval_scheduler import EvalBackend
from orchestrator.sweep.ledger_curve import curve_from_ledger, films_from_ledger
from orchestrator.sweep.ray_tune import Fit
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.tracking.mlflow_writer import EXPERIMENT, SWEEP, client, tagged
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings
from orchestrator.tracking.rollout_videos import films

TRAINER, PLAYERS = FakeTrainer(0.01), FakeEvalBackend()


def sweep(folder: Path, store: str, **sections: Any) -> SweepConfig:
    """Return a sweep of four demo counts in `folder`; sweeps share a tracking database, which takes longer to
    create than most of them to run.
    """
    tracked = f"sqlite:///{Path(store).parent / 'mlflow.db'}"
    data = {"episodes": store, "demo_count": [1, 2, 4, 8]} | sections.pop("data", {})
    train = {"steps": 9, "batch_size": 2, "checkpoint_every": 3} | sections.pop("train", {})
    suite = {"tasks": ["Lift"], "episodes": 40, "horizon": 50}
    return SweepConfig.model_validate(
        {
            "name": folder.name,
            "data": data,
            "train": train,
            "suite": suite,
            "storage": str(folder),
            "mlflow": tracked,
            **sections,
        }
    )


class Run:
    """One run of a sweep and the lines that it logged; `Run(sweep)()` runs it to its end."""

    def __init__(
        self,
        sweep: SweepConfig,
        fit: Fit = TRAINER,
        players: Callable[..., EvalBackend] = PLAYERS,
        retry_failed: bool = False,
        outbox: OutboxSettings = DEFAULT_OUTBOX,
    ) -> None:
        self.lines: list[str] = []
        self.run = SweepRun(sweep, self.lines.append, retry_failed, fit, players, outbox)

    def __call__(self) -> "Run":
        self.curve = self.run.run()
        return self

    def said(self, *words: str) -> list[str]:
        """List the logged lines that contain all of these words."""
        return [line for line in self.lines if all(word in line for word in words)]

    @property
    def states(self) -> dict[int, str]:
        """States of the arms by demo count."""
        return {arm.arm.demo_count: arm.state for arm in self.run.board.arms.values()}


def run_statuses(sweep: SweepConfig) -> dict[int | None, str]:
    """Return the statuses of a sweep's runs in MLflow by demo count; None: of its own run."""
    mlflow = client(sweep.mlflow)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    found = mlflow.search_runs([experiment], tagged({SWEEP: sweep.name}))
    return {int(run.data.params["demo_count"]) if run.data.params else None: run.info.status for run in found}


def ledger(folder: Path) -> pd.DataFrame:
    """Return every recorded outcome, duplicates included."""
    return pd.concat([pd.read_parquet(file) for file in folder.glob("outcomes/*/*/*.parquet")])


def curve_in_numbers(curve: Curve) -> dict[str, Any]:
    """Return a curve's report without the ids of MLflow's runs, which only MLflow has."""
    told = json.loads(json.dumps(curve.to_json()))
    for arm in told["arms"]:
        arm["run_id"] = ""
    return cast(dict[str, Any], told)


def equal_curve(sweep: SweepConfig) -> Curve:
    """Return the curve from a sweep's ledger, after comparing it and its films with those from MLflow."""
    state = SweepState.open(sweep)
    made, read = curve_from_ledger(state), curve_from_mlflow(sweep.mlflow, sweep.name, state.store)
    assert isinstance(made, Curve)
    assert all(arm.run_id for arm in read.arms)
    assert made.arms == tuple(replace(arm, run_id="") for arm in read.arms)
    assert curve_in_numbers(made) == curve_in_numbers(read)
    assert films_from_ledger(state, made.arms) == films(sweep.mlflow, read.arms)
    return made
