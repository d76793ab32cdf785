"""Shifted worlds: each differs from the nominal one in one way only, and is the same in any process and
order.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import run

from orchestrator.code_fingerprint import SCORING_CODE
from orchestrator.provenance import CHECKOUT
from sim_workers.envs.shift_objects import DISTRACTORS
from sim_workers.envs.shifts import PLACEMENT, REFUSED, build, refusal
from sim_workers.envs.tasks import TASKS
from sim_workers.rollout.suite import SHIFTS, VARIANTS, EpisodeRules, Suite

SHIFTED = [shift for shift in SHIFTS if shift != "nominal"]

# One environment at a time: each is closed before the next is made.
PLAY = """
import hashlib, json, sys
import numpy as np
from sim_workers.envs.robosuite import SimEnv, contract
worlds = {}
for task, shift, variant, seed in json.loads(sys.argv[1]):
    env = SimEnv(task, contract(("robot0_eye_in_hand", "agentview"), (64, 64), "fast", task), shift, variant)
    env.reset(seed)
    sim = env._env.sim
    seen = {"class": type(env._env).__name__, "start": sim.data.qpos.tolist()}
    own = [name for name in sim.model.body_names if not name.startswith("distractor")]
    seen["bodies"] = [sim.data.body_xpos[sim.model.body_name2id(name)].tolist() for name in own]
    seen["pictures"] = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in env.pictures().values()]
    rng = np.random.default_rng(seed)
    for _ in range(5):
        env.step(rng.uniform(-1, 1, len(env.contract.action)))
    seen["end"] = hashlib.sha256(env.physics.tobytes() + env.pictures()["agentview"].tobytes()).hexdigest()
    env.close()
    worlds["/".join(map(str, (task, shift, variant)))] = seen
print(json.dumps(worlds))
"""

SOLVE = """
import json, sys
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.demos.experts import expert_for
solved = {}
for shift in json.loads(sys.argv[1]):
    env = SimEnv("Lift", contract((), (64, 64), "fast"), shift, 2)
    env.reset(1_000_002)
    expert = expert_for("Lift")
    for _ in range(expert.horizon):
        env.step(expert.act(env.state))
        if env.succeeded:
            break
    solved[shift] = env.succeeded
    env.close()
print(json.dumps(solved))
"""


def play(worlds: list[tuple[str, str, int, int]]) -> dict[str, Any]:
    done = run("-W", "ignore", "-c", PLAY, json.dumps(worlds))
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def lift() -> dict[str, Any]:
    return play(
        [("Lift", "nominal", 0, 7), *(("Lift", shift, variant, 7) for shift in SHIFTED for variant in (0, 3))]
    )


@pytest.mark.full
@pytest.mark.sim
def test_shifted_world_is_the_same_in_another_process_and_order(lift: dict[str, Any]) -> None:
    again = play([*(("Lift", shift, 0, 7) for shift in reversed(SHIFTED)), ("Lift", "nominal", 0, 7)])
    assert again == {name: lift[name] for name in again}


@pytest.mark.full
@pytest.mark.sim
def test_nominal_world_is_the_class_of_robosuite(lift: dict[str, Any]) -> None:
    assert lift["Lift/nominal/0"]["class"] == "Lift"


@pytest.mark.full
@pytest.mark.sim
def test_shifted_worlds_have_different_pictures(lift: dict[str, Any]) -> None:
    for camera in (0, 1):
        assert len({world["pictures"][camera] for world in lift.values()}) == len(lift)


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize("shift", ["lighting", "texture", "camera", "distractors"])
def test_appearance_shift_starts_as_the_nominal_world(lift: dict[str, Any], shift: str) -> None:
    nominal = lift["Lift/nominal/0"]
    for variant in (0, 3):
        world = lift[f"Lift/{shift}/{variant}"]
        added = 7 * len(DISTRACTORS[variant]) if shift == "distractors" else 0
        assert world["start"][: len(world["start"]) - added] == nominal["start"]
        assert world["bodies"] == nominal["bodies"]


@pytest.mark.full
@pytest.mark.sim
def test_object_shift_changes_only_the_height_of_the_object(lift: dict[str, Any]) -> None:
    nominal = np.array(lift["Lift/nominal/0"]["start"])
    for variant in (0, 3):
        difference = np.flatnonzero(np.array(lift[f"Lift/object/{variant}"]["start"]) != nominal)
        assert difference.tolist() == [len(nominal) - 5]  # its height only, for it is not as high


@pytest.mark.full
@pytest.mark.sim
def test_placement_shift_lies_outside_the_nominal_range(lift: dict[str, Any]) -> None:
    for variant in (0, 3):
        *robot, x, y = lift[f"Lift/placement/{variant}"]["start"][:-5]
        assert max(abs(x), abs(y)) > 0.03
        assert robot == lift["Lift/nominal/0"]["start"][:-7]


@pytest.mark.full
@pytest.mark.sim
def test_expert_lifts_under_every_shift() -> None:
    done = run("-W", "ignore", "-c", SOLVE, json.dumps(SHIFTED))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(SHIFTED, True)


@pytest.mark.full
@pytest.mark.sim
def test_other_tasks_have_shifted_worlds() -> None:
    """One of each kind of scene: bins, a door, two arms; what the episode draws stays as drawn."""
    worlds = play(
        [
            (task, shift, 1, 5)
            for task in ("PickPlaceCan", "Door", "TwoArmHandover")
            for shift in ("nominal", "distractors")
        ]
        + [("PickPlaceCan", "object", 0, 5), ("Door", "placement", 1, 5)]
    )
    for task in ("PickPlaceCan", "Door", "TwoArmHandover"):
        assert worlds[f"{task}/distractors/1"]["bodies"] == worlds[f"{task}/nominal/1"]["bodies"]
        assert worlds[f"{task}/distractors/1"]["pictures"][1] != worlds[f"{task}/nominal/1"]["pictures"][1]
    assert worlds["PickPlaceCan/object/0"]["pictures"][1] != worlds["PickPlaceCan/nominal/1"]["pictures"][1]
    assert worlds["Door/placement/1"]["bodies"] != worlds["Door/nominal/1"]["bodies"]


def test_shift_that_does_not_exist_raises_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^there is no object shift of Wipe: it handles nothing but marks$"):
        build("Wipe", "object", 0)
    with pytest.raises(
        ValueError, match="there is no shift fog of Lift; there are nominal, lighting, texture"
    ):
        build("Lift", "fog", 0)
    with pytest.raises(
        ValueError, match="there is no variant 5 of the lighting shift of Lift; they count from 0 to 4"
    ):
        build("Lift", "lighting", 5)
    assert {pair for pair in ((task, shift) for task in TASKS for shift in SHIFTS) if refusal(*pair)} == set(
        REFUSED
    )


def test_tasks_have_a_placement_or_a_refusal() -> None:
    for task in TASKS:
        assert bool(refusal(task, "placement")) != any(task.startswith(family) for family in PLACEMENT)
    assert all(len(moves) == VARIANTS for _, moves in PLACEMENT.values())


def test_suites_of_different_shifts_have_different_fingerprints() -> None:
    suite = Suite(("Lift",), 20, EpisodeRules(100))
    prints = {replace(suite, shift=shift).fingerprint() for shift in SHIFTS}
    assert len(prints) == len(SHIFTS)
    assert len({spec.variant for spec in replace(suite, shift="camera").episode_list()}) == VARIANTS


def test_scoring_code_contains_the_shift_modules() -> None:
    assert {"sim_workers/envs/shifts.py", "sim_workers/envs/shift_objects.py"} <= set(SCORING_CODE)
    assert all((CHECKOUT / file).is_file() for file in SCORING_CODE)
