"""The example package's tasks around a cube: places, sentences and experts."""

import importlib
import tomllib
from collections.abc import Iterator
from itertools import combinations
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT

from policy.text_encoder import WordVectors
from sim_workers.demos.experts import METRES_PER_UNIT

PACKAGE = CHECKOUT / "examples" / "own_tasks"
CUBE = np.array([0.05, -0.1, 0.83])


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PACKAGE))
    return importlib.import_module("own_tasks.around_cube")


def test_no_place_counts_for_two_tasks(tasks: ModuleType) -> None:
    places = [tasks.place(direction, CUBE) for direction in tasks.DIRECTIONS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) > 2 * tasks.TOLERANCE_M
    assert min(np.linalg.norm((one - CUBE)[:2]) for one in places) > 2 * tasks.TOLERANCE_M


def test_entry_points_lead_to_tasks_with_distinct_sentences(tasks: ModuleType) -> None:
    """Two sentences' tokens differ by more than half of the length of a token."""
    offered = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    found: dict[str, Any] = {
        name.removeprefix("own_tasks/"): getattr(tasks, value.partition(":")[2])
        for name, value in offered["demoscale.envs"].items()
        if value.startswith("own_tasks.around_cube:")
    }
    assert {name: task.environment for name, task in found.items()} == {name: name for name in found}
    assert {*found} == {f"Cube{direction}" for direction in tasks.DIRECTIONS}
    tokens = WordVectors(64).embed([task.instruction for task in found.values()])[:, 0]
    assert min((a - b).norm() for a, b in combinations(tokens, 2)) > 0.5 * tokens.norm(dim=1).max()


@pytest.mark.parametrize("direction", ["North", "SouthWest"])
def test_expert_moves_straight_to_its_place(tasks: ModuleType, direction: str) -> None:
    hand, goal = np.array([-0.1, 0.01, 1.01]), tasks.place(direction, CUBE)
    way = goal - hand
    expert = tasks.AroundCubeExpert(direction)
    for _ in range(expert.horizon):
        env = SimpleNamespace(state={"cube_pos": CUBE, "robot0_eef_pos": hand})
        action = expert.act(env)
        assert np.abs(action).max() <= 1.0
        assert np.linalg.norm(np.cross(action[:3], way)) < 1e-9
        hand = hand + 0.5 * METRES_PER_UNIT * action[:3]
    assert np.linalg.norm(goal - hand) < 0.001


@pytest.fixture
def env(tasks: ModuleType) -> Iterator[Any]:
    task = tasks.NORTH
    found = task.make(task.contract(("agentview",), (16, 16), "fast"))
    yield found
    found.close()


@pytest.mark.full
@pytest.mark.sim
def test_expert_succeeds_in_its_own_task_alone(tasks: ModuleType, env: Any) -> None:
    """Every step of every expert is judged by all eight tasks."""
    assert not env.own_step
    for direction in tasks.DIRECTIONS:
        for seed in range(3):
            env.reset(seed)
            expert, done = tasks.AroundCubeExpert(direction), set[str]()
            for _ in range(40):
                env.step(expert.act(env))
                for judge in tasks.DIRECTIONS:
                    env._env.direction = judge
                    done |= {judge} if env.succeeded else set()
            assert done == {direction}
