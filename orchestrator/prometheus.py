"""The Prometheus metrics of a running sweep, exported through Ray.

Ray exports them on each node's metrics port, with the prefix `ray_` and its own labels (node, process) in
addition to the tags; deploy/README.md describes the scraping, and deploy/grafana/demoscale.json plots them.
They are for monitoring only: results are in the ledger and in MLflow.

Ray keeps a histogram's counts per bucket, but no exact sum: quantiles are as precise as the bounds, the mean
is less so.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

_made: dict[str, Any] = {}
"""Recording methods of Ray's metric objects in this process, by name."""


@dataclass(frozen=True)
class Metric:
    """Declaration of one metric."""

    kind: Literal["Counter", "Gauge", "Histogram"]
    name: str
    description: str
    unit: str
    tags: tuple[str, ...] = ()
    """Tags in addition to `sweep`."""
    bounds: tuple[float, ...] = field(default=())
    """Upper bounds of a histogram's buckets."""

    def record(self, value: float, sweep: str, **tags: str) -> None:
        """Add to the counter, set the gauge or observe the value in the histogram.

        Cheap, and never raises: it does nothing without a connected Ray, and drops a value that Ray refuses.
        """
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized() or (self.kind == "Counter" and value <= 0):
            return
        with suppress(Exception):  # a failure of monitoring must not end a run
            record = _made.get(self.name) or self._make()
            record(value, {"sweep": sweep, **tags})

    def _make(self) -> Any:
        from ray.util import metrics

        told = {"description": f"{self.description} ({self.unit})", "tag_keys": ("sweep", *self.tags)}
        if self.kind == "Histogram":
            record = metrics.Histogram(self.name, boundaries=[*self.bounds], **told).observe
        else:
            record = (
                metrics.Counter(self.name, **told).inc
                if self.kind == "Counter"
                else metrics.Gauge(self.name, **told).set
            )
        return _made.setdefault(self.name, record)


# Scoring.
EPISODES = Metric(
    "Counter",
    "demoscale_episodes_total",
    "Episodes with a recorded outcome",
    "episodes",
    ("task", "result"),
)
QUEUED_EPISODES = Metric("Gauge", "demoscale_queued_episodes", "Episodes to play or being played", "episodes")
UNSCORED_CHECKPOINTS = Metric(
    "Gauge", "demoscale_unscored_checkpoints", "Checkpoints that wait for a score", "checkpoints"
)
ROLLOUT_WORKERS = Metric("Gauge", "demoscale_rollout_workers", "Simulator processes", "processes")
BATCH_FILL = Metric(
    "Histogram",
    "demoscale_policy_batch_fill_ratio",
    "Rows of a policy server's batch, as a fraction of its largest batch",
    "ratio",
    bounds=(1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
)
REPLAN_LATENCY = Metric(
    "Histogram",
    "demoscale_replan_latency_seconds",
    "Time from a simulator's request to a policy server's answer: queueing and computing",
    "seconds",
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0),
)

# Training. Each worker counts its own steps and seconds, so seconds over steps is a mean over steps and
# workers.
CLIPS = Metric("Counter", "demoscale_clips_total", "Clips trained on, by all workers", "clips")
OPTIMISER_STEPS = Metric(
    "Counter", "demoscale_optimiser_steps_total", "Optimiser steps, of every worker", "steps"
)
OPTIMISER_STEP_S = Metric(
    "Counter",
    "demoscale_optimiser_step_seconds_total",
    "Time in optimiser steps, with the batch at hand, of every worker",
    "seconds",
)
LOADER_STALL_S = Metric(
    "Counter",
    "demoscale_loader_stall_seconds_total",
    "Time in which a step waited for data, of every worker",
    "seconds",
)

# Both.
RETRIES = Metric(
    "Counter",
    "demoscale_retries_total",
    "Restarts after a failure, of an episode, a simulator (worker) or a training run",
    "attempts",
    ("kind",),
)
UNTOLD_RECORDS = Metric(
    "Gauge",
    "demoscale_mlflow_untold_records",
    "Records on disk that are not yet published to MLflow",
    "records",
)

METRICS = (
    EPISODES,
    QUEUED_EPISODES,
    UNSCORED_CHECKPOINTS,
    ROLLOUT_WORKERS,
    BATCH_FILL,
    REPLAN_LATENCY,
    CLIPS,
    OPTIMISER_STEPS,
    OPTIMISER_STEP_S,
    LOADER_STALL_S,
    RETRIES,
    UNTOLD_RECORDS,
)
