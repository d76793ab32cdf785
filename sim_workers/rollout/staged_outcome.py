"""Outcome of an episode with how far it came and where its object lay."""

from dataclasses import dataclass, fields
from typing import NamedTuple

from sim_workers.rollout.episode import Outcome


class Place(NamedTuple):
    """Where an object lies, in the world's horizontal plane (m)."""

    x: float
    y: float


@dataclass(frozen=True)
class StagedOutcome(Outcome):
    """Outcome with what was read from the simulator's state."""

    stage: str | None = None
    """Furthest stage of the task (`sim_workers.envs.stage_names`), `none` before the first one; None if the
    task has no stages, or if an earlier version played.
    """
    start_x: float | None = None
    """Where the object lay at the beginning, in metres in the world's frame; None as for `stage`, and with
    several objects.
    """
    start_y: float | None = None
    """As `start_x`."""

    @classmethod
    def of(cls, outcome: Outcome, stage: str | None, start: Place | None) -> "StagedOutcome":
        """Return the outcome with its stage and the object's place at the beginning."""
        own = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
        return cls(**own, stage=stage, start_x=start and start.x, start_y=start and start.y)
