"""Stages and starting places of episodes: what is stored, and what it does not change."""

from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.code_fingerprint import SCORING_CODE
from orchestrator.testing.outcomes import stand_still
from policy.interface import ActionChunk, Observation
from sim_workers.envs import stages
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.envs.stage_names import LADDERS
from sim_workers.envs.tasks import TASKS
from sim_workers.rollout.policy_clients import PolicyClient
from sim_workers.rollout.reference_policies import ReferencePolicy
from sim_workers.rollout.staged_outcome import StagedOutcome
from sim_workers.rollout.staged_worker import RolloutWorker
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec
from sim_workers.rollout.worker import Played, RolloutJob

SPEC = EpisodeSpec("Lift", 1_000_003, 1_000_003)
CONTRACT = contract((), (64, 64), "fast")


class Idle:
    def connect(self) -> PolicyClient:
        return self

    def act(self, observation: Observation) -> ActionChunk:
        return stand_still(observation)


def test_stages_are_no_part_of_a_scores_key() -> None:
    assert not {file for file in SCORING_CODE if "stage" in file}


def test_ladders_are_of_known_tasks() -> None:
    assert LADDERS.keys() <= TASKS.keys()


@pytest.fixture
def worker() -> Iterator[RolloutWorker]:
    made = RolloutWorker()
    yield made
    made._asking.shutdown()
    if isinstance(made._env, SimEnv):
        made._env.close()


@pytest.mark.full
@pytest.mark.sim
def test_expert_lifts_and_an_idle_policy_does_not(
    worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grasp that is read equals robosuite's own at every step."""
    grasps = set[bool]()
    look = stages.StageWatch.look

    def compared(watch: stages.StageWatch) -> None:
        env = watch._env
        grasps.add(own := env._check_grasp(env.robots[0].gripper, env.cube))
        assert watch._grasped() == own
        look(watch)

    monkeypatch.setattr(stages.StageWatch, "look", compared)
    outcomes = {}
    for name, source in {"expert": ReferencePolicy("expert", (), ()), "idle": Idle()}.items():
        *_, last = worker.play(RolloutJob(SPEC, EpisodeRules(60), CONTRACT, source))
        assert isinstance(last, Played)
        outcomes[name] = last.outcome
    expert, idle = outcomes["expert"], outcomes["idle"]
    assert isinstance(expert, StagedOutcome)
    assert isinstance(idle, StagedOutcome)
    assert expert.result == "success"
    assert (expert.stage, idle.stage) == ("lifted", "none")
    assert grasps == {True, False}
    assert isinstance(worker._env, SimEnv)
    worker._env.reset(SPEC.scene_seed)
    assert (expert.start_x, expert.start_y) == tuple(worker._env.state["cube_pos"][:2].tolist())
    assert (idle.start_x, idle.start_y) == (expert.start_x, expert.start_y)
    assert vars(worker._env).keys().isdisjoint({"reset", "step"})
    assert np.isfinite([expert.start_x, expert.start_y]).all()
