"""MLflow, the only file that speaks it: one parent run per sweep, one child per arm, scores at their checkpoint's training step.

Runs are found or created by tags, so a sweep that is killed and started again continues the same runs. One process writes.
"""

import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.arms import Arm

EXPERIMENT = "demoscale"
# Tags. A parent's training and scoring fingerprints say which of its children belong to the sweep as it stands now.
SWEEP, ARM, TRAINING, PROTOCOL, STEPS = (f"demoscale.{name}" for name in ("sweep", "arm", "training", "protocol", "steps"))


class TrackingError(Exception):
    """One sentence: what the tracking store does not know."""


def local_folder(storage_uri: str) -> Path:
    """Where what must be a local file lies for a storage: in it, or in `runs` beside an S3 bucket."""
    return Path("runs" if storage_uri.startswith("s3://") else storage_uri.removeprefix("file://")).absolute()


def tracking_uri(mlflow: str, storage_uri: str) -> str:
    """Where a sweep is tracked: what its file says, or a database beside its other results."""
    if mlflow:
        return mlflow
    return f"sqlite:///{local_folder(storage_uri) / 'mlflow.db'}"


def client(uri: str) -> Any:
    """MLflow's own, for a store's URI; a local database is made if there is none."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def tagged(tags: dict[str, str]) -> str:
    """A search filter: runs that have all of them."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


class Tracker:
    """Writes one sweep."""

    def __init__(self, uri: str, sweep: str, *, training: str, protocol: str, steps: int, artifacts: str | None = None) -> None:
        """training, protocol: fingerprints of how the arms are trained and scored; steps: of the last checkpoint.

        artifacts: where an experiment created here keeps its files; a tracking server decides for itself.
        """
        self._lock = threading.Lock()  # the sweep's thread and the scorer's both write
        self._mlflow = client(uri)
        experiment = self._mlflow.get_experiment_by_name(EXPERIMENT)
        local = artifacts if uri.startswith("sqlite:") else None
        self._experiment = experiment.experiment_id if experiment else self._mlflow.create_experiment(EXPERIMENT, artifact_location=local)
        self._tags = {SWEEP: sweep, TRAINING: training, PROTOCOL: protocol}
        self.parent = self._find_or_create(sweep, {SWEEP: sweep, ARM: "-"})
        for name, value in {**self._tags, STEPS: str(steps)}.items():
            self._mlflow.set_tag(self.parent, name, value)
        self._children: dict[str, str] = {}
        self._logged: dict[str, dict[str, set[int]]] = {}  # steps, by run and metric

    def _find_or_create(self, name: str, tags: dict[str, str]) -> str:
        found = self._mlflow.search_runs([self._experiment], tagged(tags), max_results=1)
        run = found[0] if found else self._mlflow.create_run(self._experiment, run_name=name, tags=tags)
        run_id: str = run.info.run_id
        return run_id

    def arm(self, arm_id: str, arm: Arm, facts: dict[str, str]) -> None:
        """Open the arm's run; `facts` become tags."""
        run = self._find_or_create(arm.name, {**self._tags, ARM: arm_id, "mlflow.parentRunId": self.parent})
        self._children[arm_id] = run
        for name, value in _params(arm).items():
            self._mlflow.log_param(run, name, value)
        for name, value in facts.items():
            self._mlflow.set_tag(run, name, value)

    def metrics(self, arm_id: str, step: int, values: dict[str, float]) -> None:
        """Log numbers at a training step, once: what is already there from before an interruption is left alone."""
        from mlflow.entities import Metric

        run, now = self._children[arm_id], int(time.time() * 1000)
        with self._lock:
            for name in values.keys() - self._logged.setdefault(run, {}).keys():  # asked once: nobody else writes
                self._logged[run][name] = {logged.step for logged in self._mlflow.get_metric_history(run, name)}
            new = [Metric(name, value, now, step) for name, value in values.items() if step not in self._logged[run][name]]
            if new:
                self._mlflow.log_batch(run, metrics=new)
            for metric in new:
                self._logged[run][metric.key].add(step)

    def artifact(self, arm_id: str | None, name: str, data: bytes) -> None:
        """Store a file with an arm's run, or with the sweep's if there is no arm. `name` may hold folders."""
        run = self._children[arm_id] if arm_id else self.parent
        with tempfile.TemporaryDirectory() as folder, self._lock:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            self._mlflow.log_artifact(run, str(path), str(Path(name).parent) if "/" in name else None)

    def finish(self, arm_id: str | None = None) -> None:
        """Mark an arm's run, or the sweep's, as finished."""
        with self._lock:
            self._mlflow.set_terminated(self._children[arm_id] if arm_id else self.parent)


def _params(arm: Arm) -> dict[str, str | int | float]:
    """An arm as its run's params, by the words of the sweep file."""
    return {"policy": arm.kind, "demo_count": arm.demo_count, "action_free_ratio": arm.action_free_ratio, "seed": arm.seed}


SCORE_METRICS = ("success_rate", "successes", "episodes", "errors", "success_low", "success_high")


def outcomes_artifact(step: int, shift: str = "nominal") -> str:
    """Name of the file with every episode's outcome at a training step."""
    return f"outcomes/step_{step:06d}{'' if shift == 'nominal' else f'_{shift}'}.json"
