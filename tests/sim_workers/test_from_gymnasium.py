"""Any gymnasium environment as a task of a plug-in."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.testing.envs import check_env
from policy.interface import ActionChunk
from sim_workers.envs.from_gymnasium import GymnasiumTask
from sim_workers.rollout.divergence import ActionError
from sim_workers.rollout.episode import Env, run_episode
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec


class Slider(gymnasium.Env[npt.NDArray[np.float64], npt.NDArray[np.float32]]):
    """A block that must be pushed to the right end."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float32)
        self.size, self.place = size, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(0.1, 0.3))
        return np.array([self.place]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = float(np.clip(self.place + action[0], 0, 1))
        done = self.place > 0.8
        return np.array([self.place]), float(done), done, False, {"won": np.bool_(done)}

    def render(self) -> Any:
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, int(self.place * 79)] = 255
        return image


GYMNASIUM = GymnasiumTask(
    make=Slider,
    instruction="push the block to the right",
    action=("push_m",),
    proprio=("place_m",),
    state=lambda env, observation: observation,
    physics=lambda env, observation: [env.place],
    control_hz=10.0,
    horizon=40,
    simulator="slider 1",
    success="won",
)
TASK = GYMNASIUM.task()


def made(size: tuple[int, int] = (40, 80)) -> Env:
    return TASK.make(TASK.contract(("render",), size, "fast"))


def test_gymnasium_environment_keeps_the_contract_of_environments() -> None:
    check_env(made)
    check_env(lambda: made((16, 24)))


def test_gymnasium_environment_clips_actions_and_goes_on_after_success() -> None:
    env = made()
    env.reset(1)
    before = env.physics[0]
    env.step(np.array([5.0]))
    assert env.physics[0] == pytest.approx(before + 0.1)
    with pytest.raises(ActionError, match="nan in push_m"):
        env.step(np.array([np.nan]))

    class Push:
        actions, execute = np.ones((4, 1), np.float32), 4

    rules = EpisodeRules(TASK.horizon, settle=6)
    outcome = run_episode(env, EpisodeSpec("x/Slider", 1, 1), rules, lambda seen: Push)  # type: ignore[arg-type, return-value]
    assert outcome.result == "success"
    assert outcome.first_success is not None
    assert outcome.steps == outcome.first_success + 6


@pytest.mark.parametrize(("field", "what"), [("physics", "physics"), ("state", "proprioception")])
@pytest.mark.parametrize("past", [0.0, 0.5])
def test_gymnasium_environment_that_leaves_the_finite_numbers_ends_as_an_error(
    field: str, what: str, past: float
) -> None:
    def broken(env: Any, _: Any) -> list[float]:
        return [env.place if env.place <= past else np.nan]

    task = replace(GYMNASIUM, **{field: broken}).task()
    env = task.make(task.contract(("render",), (40, 80), "fast"))
    chunk = ActionChunk(np.full((8, 1), 0.1, np.float32), 8)
    outcome = run_episode(env, EpisodeSpec("x/Slider", 1, 1), EpisodeRules(30), lambda _: chunk)
    assert (outcome.result, outcome.steps > 0) == ("error", past > 0)
    assert f"the simulation diverged: the {what} of the environment" in outcome.message


def test_gymnasium_environment_without_proprioception_has_an_empty_one() -> None:
    contract = replace(TASK.contract(("render",), (16, 16), "fast"), proprio=())
    env = TASK.make(contract)
    env.reset(0)
    assert env.observe(0).proprio.shape == (0,)
