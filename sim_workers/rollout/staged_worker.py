"""Rollout worker that also records how far each episode came and where its object lay.

The code of a score's key (`orchestrator/code_fingerprint.py`) holds what shapes an outcome. Stages shape
none, so this module wraps `worker.py` from outside, and scores of earlier versions keep their keys.
"""

from collections.abc import Iterator
from dataclasses import replace

from policy.interface import PolicyNeeds
from sim_workers.envs.robosuite import SimEnv
from sim_workers.envs.stage_names import LADDERS
from sim_workers.envs.stages import StageWatch
from sim_workers.rollout import worker
from sim_workers.rollout.policy_clients import PolicyClient
from sim_workers.rollout.staged_outcome import StagedOutcome
from sim_workers.rollout.watched_env import watched
from sim_workers.rollout.worker import Played, RolloutJob, Said


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
        with watched(env, watch):
            for said in super()._playing(job, asker, needs):
                if isinstance(said, Played):
                    stage = watch.stage(said.outcome.success_once)
                    said = replace(said, outcome=StagedOutcome.of(said.outcome, stage, watch.place))
                yield said
