"""Notes that a sweep keeps of its checkpoints: `checkpoints/<training run>/step_000100.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.storage.base import Storage
from orchestrator.storage.notes import read_json_objects
from sim_workers.arithmetic import Arithmetic


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Losses and consumed clips of a training run at an optimiser step."""

    loss: float
    """Mean over the optimiser steps since the last report, as the other losses."""
    loss_video: float
    loss_action: float
    clips_with_actions: float | None = None
    """Clips that the first worker trained on since step 0, as the next two; None if unknown."""
    clips_action_free: float | None = None
    action_free_ratio_consumed: float | None = None
    """Clips without actions per clip with actions, to compare with the requested ratio."""
    optimiser_steps: float | None = None
    """Optimiser steps since the start where `step` counts seconds of a budget; None otherwise."""

    @property
    def metrics(self) -> dict[str, float]:
        """Losses and, if known, consumed clips by the names of their metrics."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainingProgress)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(TrainingProgress):
    """Note of an intact checkpoint."""

    fingerprint: str
    trained_on: tuple[Arithmetic, ...] = ()
    """Arithmetics of the training processes up to here, one after the other; none if not recorded."""
    removed: bool = False
    """Whether its files were removed (`train.keep`, `demoscale gc`); its scores stay."""

    def to_json(self) -> dict[str, Any]:
        """Return the metrics, the checkpoint's fingerprint, what it was trained on and, if so, that it was
        removed, JSON-safe.
        """
        made: dict[str, Any] = {"removed": True} if self.removed else {}
        if self.trained_on:
            made["trained_on"] = [one.to_json() for one in self.trained_on]
        return {**self.metrics, "checkpoint": self.fingerprint, **made}

    @classmethod
    def from_json(cls, note: Mapping[str, Any]) -> "CheckpointRecord":
        """Return the record of a note. Raises KeyError if it has no fingerprint or loss."""
        return cls(
            fingerprint=note["checkpoint"],
            loss=note["loss"],
            loss_video=note["loss_video"],
            loss_action=note["loss_action"],
            clips_with_actions=note.get("clips_with_actions"),
            clips_action_free=note.get("clips_action_free"),
            action_free_ratio_consumed=note.get("action_free_ratio_consumed"),
            optimiser_steps=note.get("optimiser_steps"),
            trained_on=tuple(map(Arithmetic.from_json, note.get("trained_on", ()))),
            removed=note.get("removed", False),
        )


def read_records(storage: Storage, run: str) -> dict[int, CheckpointRecord]:
    """Return a sweep's records of a training run's intact checkpoints, by step."""
    notes = read_json_objects(storage, f"checkpoints/{run}/step_")
    return {
        int(step): CheckpointRecord.from_json(note) for step, note in notes.items() if "damaged" not in note
    }


def write_record(storage: Storage, run: str, step: int, record: CheckpointRecord) -> None:
    """Note that the checkpoint of this step is complete."""
    storage.put(_key(run, step), json.dumps(record.to_json()).encode())


def note_damaged(storage: Storage, run: str, step: int) -> None:
    """Note that the checkpoint of this step is damaged, until training writes it again."""
    storage.put(_key(run, step), json.dumps({"damaged": True}).encode())


def _key(run: str, step: int) -> str:
    return f"checkpoints/{run}/step_{step:06d}.json"
