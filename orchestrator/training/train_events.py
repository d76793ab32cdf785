"""Events of training runs, sent by trials and training workers through the control channel to the driver."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.checkpoints.record import TrainingProgress
from orchestrator.training.worker_usage import WorkerUsage
from sim_workers.arithmetic import Arithmetic


@dataclass(frozen=True, kw_only=True)
class Reported(TrainingProgress):
    """Progress of a run at an optimiser step, or at a second of its budget, with a checkpoint or without."""

    run: str
    """Id of the arm, or of the video model that several arms share."""
    step: int
    """Optimiser steps since the start of training, or seconds of a budget of time."""
    usage: WorkerUsage
    """Usage of all workers since the last report."""
    checkpoint: str = ""
    """Fingerprint of the checkpoint at this step; empty if none was saved."""
    trained_on: tuple[Arithmetic, ...] = ()
    """Arithmetics of the first worker up to this step, one after the other; none if not recorded."""

    def to_metrics(self) -> dict[str, Any]:
        """Return the report as Ray Train's metrics: everything but the run; `checkpoint` and `trained_on`
        only if there are any.
        """
        made: dict[str, Any] = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        if self.trained_on:
            made["trained_on"] = [arithmetic.to_json() for arithmetic in self.trained_on]
        return {"step": self.step, **self.metrics, **asdict(self.usage), **made}

    @classmethod
    def from_metrics(cls, run: str, metrics: Mapping[str, Any]) -> "Reported":
        """Return the report of a run from Ray Train's metrics. Raises KeyError if the step or a loss is
        missing; other numbers count as 0 then, as in a list that `train_snapshot.repair` made from records.
        """
        return cls(
            run=run,
            step=int(metrics["step"]),
            loss=float(metrics["loss"]),
            loss_video=float(metrics["loss_video"]),
            loss_action=float(metrics["loss_action"]),
            clips_with_actions=metrics.get("clips_with_actions", 0),
            clips_action_free=metrics.get("clips_action_free", 0),
            action_free_ratio_consumed=metrics.get("action_free_ratio_consumed", 0.0),
            optimiser_steps=metrics.get("optimiser_steps"),
            usage=WorkerUsage.from_metrics(metrics),
            checkpoint=metrics.get("checkpoint", ""),
            trained_on=tuple(map(Arithmetic.from_json, metrics.get("trained_on", ()))),
        )


@dataclass(frozen=True)
class Retried:
    """An attempt of a run failed; the run starts another."""

    run: str
    cause: str
    """Trace of the failure, or one sentence."""


@dataclass(frozen=True)
class Finished:
    """Training of a run ended without an error: at its last step, or at a request to pause or stop."""

    run: str
    checkpoints: tuple[Reported, ...]
    """Reports of all its checkpoints in the order of steps, those of earlier runs of the sweep included."""


@dataclass(frozen=True)
class Failed:
    """Every attempt of a run failed, or one failed with an error that no retry can fix."""

    run: str
    trace: str


TrainEvent = Reported | Retried | Finished | Failed
