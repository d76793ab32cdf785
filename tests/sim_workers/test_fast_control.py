"""The fast control step: bit for bit that of robosuite, however the two are mixed."""

import json

import pytest
from conftest import run

# One environment per process. An episode of random actions, a scene that was played before and another, in
# four ways: robosuite's steps, fast ones, both at random, fast ones with rare observations.
# `after` is the task's other state.
WANDER = """
import json, sys
import numpy as np
from orchestrator.testing.control import flatten_observations, make_robosuite, physics_state, random_actions, reset_scene
from sim_workers.envs.fast_control import FastStep

task, steps = sys.argv[1], int(sys.argv[2])
env = make_robosuite(task)
fast, chance = FastStep(env), np.random.default_rng(1)

def play(seed, is_fast, asks):
    states, seen = [], {-1: flatten_observations(reset_scene(env, seed))}
    for step, action in enumerate(random_actions(np.random.default_rng(seed), steps, env.action_dim)):
        if is_fast():
            fast(action)
            if asks(step):
                seen[step] = flatten_observations(fast.observations())
        else:
            seen[step] = flatten_observations(env.step(action)[0])
        states.append(physics_state(env))
    counts = [getattr(env, name, 0) for name in ("collisions", "f_excess")]
    after = [env.timestep, env.cur_time, env.done, *counts, len(getattr(env, "wiped_markers", []))]
    return np.stack(states), seen, after, bool(env._check_success())

def same(one, other):
    return (
        np.array_equal(one[0], other[0]) and one[2:] == other[2:] and all(np.array_equal(one[1][step], other[1][step]) for step in other[1])
    )

answers = {"finite": True}
for seed in (3, 4):
    robosuite = play(seed, lambda: False, None)
    answers["finite"] &= bool(np.isfinite(robosuite[0]).all())
    answers[f"fast {seed}"] = same(robosuite, play(seed, lambda: True, lambda step: True))
    answers[f"mixed {seed}"] = same(robosuite, play(seed, lambda: chance.random() < 0.5, lambda step: True))
    answers[f"seldom asked {seed}"] = same(robosuite, play(seed, lambda: True, lambda step: step % 7 == 3))
moved = np.abs(robosuite[0][-1] - robosuite[0][0]).max()
print(json.dumps({**answers, "moved": bool(moved > 0.1)}))
"""


@pytest.mark.sim
@pytest.mark.parametrize(
    "task",
    [
        "Lift",
        *(
            pytest.param(task, marks=pytest.mark.full)
            for task in ("PickPlaceSingle", "Wipe", "TwoArmHandover", "TwoArmPegInHole")
        ),
    ],
)
def test_fast_step_of_random_actions_equals_robosuite(task: str) -> None:
    """With a gripper, with observations of the previous step, with a task that counts, with two arms, without
    grippers.
    """
    done = run("-W", "ignore", "-c", WANDER, task, "24")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert all(answers.values()), answers


DEMONSTRATE = """
import json, sys
import numpy as np
from orchestrator.testing.control import TracedEnv
from sim_workers.demos.recorder import Demonstration
env = TracedEnv(sys.argv[1])
answers = {}
for seed in json.loads(sys.argv[2]):
    (one, success), (other, same) = (env.play(kind, Demonstration(sys.argv[1], seed, 0.3)) for kind in ("robosuite", "ours"))
    answers[seed] = bool(np.array_equal(one, other)) and success and same
env.close()
print(json.dumps(answers))
"""


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize(("task", "seeds"), [("Stack", [2, 3]), ("NutAssemblySquare", [2])])
def test_fast_step_of_contact_rich_demonstrations_equals_robosuite(task: str, seeds: list[int]) -> None:
    done = run("-W", "ignore", "-c", DEMONSTRATE, task, json.dumps(seeds))
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(seeds)
    assert all(answers.values()), answers


# Without a GL context a process may have several environments.
ODD = """
import json
import numpy as np
from orchestrator.testing.control import flatten_observations, make_robosuite, physics_state, random_actions, reset_scene
from sim_workers.envs.fast_control import FastStep
from robosuite.controllers import load_composite_controller_config
from robosuite.utils.observables import create_deterministic_corrupter

def refusal(**changes):
    try:
        FastStep(make_robosuite("Lift", **changes))
    except ValueError as refused:
        return str(refused)

def arm(**changes):
    config = load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"].update(changes)
    return config

answers = {
    "variable": refusal(controller_configs=arm(impedance_mode="variable")),
    "joints": refusal(controller_configs=arm(type="JOINT_POSITION", output_max=0.05, output_min=-0.05, kp_limits=[0, 300])),
    "world": refusal(controller_configs=arm(input_ref_frame="world")),
    "old physics": refusal(lite_physics=False),
}

env = make_robosuite("Lift")
fast = FastStep(env)

def play(step, ask):
    reset_scene(env, 5)
    states = []
    for number, action in enumerate(random_actions(np.random.default_rng(5), 12, 7)):
        if number == 4:
            env._get_observations(force_update=True)  # from now on the observables are sampled at another moment
        if number == 8:
            env.robots[0].part_controllers["right"].update_initial_joints(env.sim.data.qpos[:7])
        seen = step(action)
        states.append(np.concatenate([physics_state(env), flatten_observations(ask(seen))]))
    return np.stack(states)

def both():
    return bool(np.array_equal(play(env.step, lambda seen: seen[0]), play(fast, lambda seen: fast.observations())))

answers["forced"] = both()
env._observables["cube_pos"].set_corrupter(create_deterministic_corrupter(0.01))
answers["corrupted"] = both()

limited = make_robosuite("Lift", hard_reset=True, horizon=2)
limited.ignore_done = False
fast = FastStep(limited)
limited.reset()  # makes a new simulation
fast(np.zeros(7)), fast(np.zeros(7, np.float32))
answers["done"] = [limited.done, bool(limited.sim.data.time > 0.09)]
for action in (np.zeros(7), np.zeros(6)):
    try:
        fast(action)
    except ValueError as refused:
        answers["over" if len(action) == 7 else "short"] = str(refused)
    limited.reset()
print(json.dumps(answers))
"""


@pytest.mark.sim
def test_fast_step_refuses_or_delegates_unsupported_settings() -> None:
    done = run("-W", "ignore", "-c", ODD)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert "impedance_mode variable" in answers["variable"]
    assert "right of Panda is under JOINT_POSITION" in answers["joints"]
    assert "input_ref_frame world" in answers["world"]
    assert "lite_physics" in answers["old physics"]
    assert answers["forced"]
    assert answers["corrupted"]
    assert answers["done"] == [True, True]
    assert "the episode is over" in answers["over"]
    assert "the action has 6 values, the robots take 7" in answers["short"]
