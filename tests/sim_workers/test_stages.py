"""Stages and starting places of episodes: what is stored, and what it does not change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

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


class Model:
    """Model whose names are numbers in the order in which they were asked for."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def number(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    site_name2id = geom_name2id = body_name2id = number


@dataclass
class Data:
    """State of a scene with room for ten bodies, sites and any contacts."""

    xpos: np.ndarray = field(default_factory=lambda: np.zeros((10, 3)))
    site_xpos: np.ndarray = field(default_factory=lambda: np.ones((10, 3)))
    contact: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(geom=np.zeros((0, 2), int)))


def stack() -> tuple[stages.StageWatch, Data, Callable[[str], int]]:
    """Return a watch of Stack, the state that it reads, and the numbers of names."""
    model, data = Model(), Data()
    gripper = SimpleNamespace(
        important_sites={"grip_site": "hand"},
        important_geoms={"left_fingerpad": ["left"], "right_fingerpad": ["right"]},
    )
    cube = SimpleNamespace(root_body="cube", contact_geoms=["cube_geom"], important_sites={})
    sim = SimpleNamespace(model=model, data=SimpleNamespace(_data=data))
    env = SimpleNamespace(sim=sim, robots=[SimpleNamespace(gripper={"right": gripper})], cubeA=cube)
    data.xpos[model.number("cube")] = (0.1, -0.2, 0.8)
    watch = stages.StageWatch(SimpleNamespace(task="Stack", _env=env))  # type: ignore[arg-type]
    watch.begin()
    return watch, data, model.number


def test_stage_is_the_furthest_one_since_the_beginning() -> None:
    watch, data, number = stack()
    cube, hand = number("cube"), number("hand")

    def after(*contacts: tuple[str, str]) -> str | None:
        data.contact.geom = np.array([[number(a), number(b)] for a, b in contacts]).reshape(-1, 2)
        watch.look()
        return watch.stage(succeeded=False)

    assert watch.place == (0.1, -0.2)
    assert after(("left", "right")) == "none"
    data.site_xpos[hand] = data.xpos[cube] + (0, 0, 0.04)
    assert after(("cube_geom", "left")) == "reached"
    assert after(("cube_geom", "left"), ("right", "cube_geom")) == "grasped"
    data.xpos[cube, 2] += 0.03
    assert after() == "grasped"
    data.xpos[cube, 2] += 0.02
    assert after() == "lifted"
    data.xpos[cube, 2] -= 0.05
    assert after() == "lifted"
    assert watch.stage(succeeded=True) == "placed"
    watch.begin()
    assert watch.stage(succeeded=False) == "none"


def test_state_that_cannot_be_read_gives_no_stage() -> None:
    watch = stages.StageWatch(SimpleNamespace(task="Lift", _env=SimpleNamespace()))  # type: ignore[arg-type]
    watch.begin()
    watch.look()
    assert (watch.stage(succeeded=True), watch.place) == (None, None)


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
