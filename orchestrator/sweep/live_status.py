"""The file `live/<sweep>.json`: progress of the current run, written by its heartbeat and read by `demoscale
status`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cost import Cost
from orchestrator.redaction import redacted_in
from orchestrator.storage.base import Storage
from orchestrator.storage.notes import read_json_object
from orchestrator.sweep.status import ArmLine, known_fields


@dataclass(frozen=True, kw_only=True)
class LiveStatus:
    """Progress of a run at one moment."""

    host: str
    pid: int
    """Host and process of the driver."""
    written: float
    """Unix time of writing, in seconds."""
    over: bool
    """Whether the run has ended."""
    ending: str = ""
    """Why no new work is started; empty otherwise."""
    arms: tuple[ArmLine, ...]
    training: tuple[str, ...] = ()
    """Training runs in progress."""
    episodes_to_play: int = 0
    """Episodes queued or running."""
    workers: int = 0
    """Simulators placed in the cluster."""
    cost: Cost
    """Cost of the sweep over all runs."""
    wall_s: float = 0.0
    """Seconds since the run began."""
    left_s: float | None = None
    """Seconds left at the pace so far, if no arm is stopped; None before there is a pace."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that is written to the storage."""
        return {
            **vars(self),
            "arms": [arm.to_json() for arm in self.arms],
            "training": list(self.training),
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LiveStatus":
        """Return a status that `to_json` wrote, in this version or an earlier one."""
        typed = {
            "arms": tuple(ArmLine.from_json(arm) for arm in data["arms"]),
            "training": tuple(data.get("training", ())),
            "cost": Cost.from_json(data["cost"]),
        }
        return cls(**known_fields(cls, data) | typed)

    def write(self, storage: Storage, sweep: str) -> None:
        """Write the status of a sweep's current run, without credentials. Raises StorageError."""
        storage.put(_key(sweep), json.dumps(redacted_in(self.to_json())).encode())

    @classmethod
    def read(cls, storage: Storage, sweep: str) -> "LiveStatus | None":
        """Return the status that a sweep's run wrote last; None if none did."""
        key = _key(sweep)
        return cls.from_json(read_json_object(storage, key)) if storage.exists(key) else None


def _key(sweep: str) -> str:
    return f"live/{sweep}.json"
