"""Rollout worker that also records how far each episode came and where its object lay.

The code of a score's key (`orchestrator/code_fingerprint.py`) holds what shapes an outcome. Stages shape
none, so this module wraps `worker.py` from outside, and scores of earlier versions keep their keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from policy.interface import PolicyNeeds
from sim_workers.envs.robosuite import SimEnv
from sim_workers.envs.stage_names import LADDERS
from sim_workers.envs.stages import StageWatch
from sim_workers.rollout import worker
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import PolicyClient
from sim_workers.rollout.worker import Played, RolloutJob, Said


@dataclass(frozen=True)
class StagedOutcome(Outcome):
    """Outcome with what was read from the simulator's state."""

    stage: str | None = None
    """Furthest stage of the task (`sim_workers.envs.stages`), `none` before the first one; None if the task
    has no stages, or if an earlier version played.
    """
    start_x: float | None = None
    """Where the object lay at the beginning, in metres in the world's frame; None as for `stage`, and with
    several objects.
    """
    start_y: float | None = None
    """As `start_x`."""

    @classmethod
    def of(cls, outcome: Outcome, watch: StageWatch) -> "StagedOutcome":
        """Return the outcome of the episode that was watched."""
        own = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
        place = watch.place
        return cls(
            **own,
            stage=watch.stage(outcome.success_once),
            start_x=place and place.x,
            start_y=place and place.y,
        )


class RolloutWorker(worker.RolloutWorker):
    """Worker whose outcomes of robosuite's tasks are staged ones. It has the name of the class that it
    extends, under which Ray lists the processes.
    """

    def _playing(self, job: RolloutJob, asker: PolicyClient, needs: PolicyNeeds) -> Iterator[Said]:
        env = self._env
        if not isinstance(env, SimEnv) or env.task not in LADDERS:
            yield from super()._playing(job, asker, needs)
            return
        watch = StageWatch(env)
        with _watched(env, watch):
            for said in super()._playing(job, asker, needs):
                yield (
                    replace(said, outcome=StagedOutcome.of(said.outcome, watch))
                    if isinstance(said, Played)
                    else said
                )


@contextmanager
def _watched(env: SimEnv, watch: StageWatch) -> Iterator[None]:
    """Let the watch see every reset and control step of the environment. Two methods are shadowed meanwhile,
    so the environment stays the same object for policies that read its state.
    """
    reset, step = env.reset, env.step

    def watched_reset(seed: int) -> None:
        reset(seed)
        watch.begin()

    def watched_step(action: Any) -> None:
        step(action)
        watch.look()

    vars(env).update(reset=watched_reset, step=watched_step)
    try:
        yield
    finally:
        for name in ("reset", "step"):
            vars(env).pop(name)
