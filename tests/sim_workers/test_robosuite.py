"""The simulator: an episode is a function of its seeds, in any process and order."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, run

from orchestrator.data.collect_demos import record
from orchestrator.data.episode_store import load_manifest
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA
from sim_workers.demos.experts import EXPERTS, expert_for
from sim_workers.demos.recorder import Demonstration, demonstrate
from sim_workers.envs import golden
from sim_workers.envs.golden import Golden
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.envs.tasks import TASKS

CONTRACT = contract((CAMERA,), (64, 64), "fast")

# One environment per process: the only one of this process.
PLAY = """
import hashlib, json, sys
import numpy as np
from sim_workers.envs import golden
from sim_workers.envs.robosuite import SimEnv, contract
task = sys.argv[1]
env = SimEnv(task, contract(("robot0_eye_in_hand", "agentview"), (64, 64), "fast", task))
hashes = {}
for seed in json.loads(sys.argv[2]):
    env.reset(seed)
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed)
    for _ in range(10):
        env.step(rng.uniform(-1, 1, len(env.contract.action)))
        digest.update(env.proprio.tobytes())
    assert env.proprio.shape == (len(env.contract.proprio),)
    for picture in env.pictures().values():
        digest.update(picture.tobytes())
    hashes[seed] = digest.hexdigest()
if "golden" in sys.argv:
    print(json.dumps(golden.traced_here(task, env).to_json()))
env.close()
print(json.dumps(hashes))
"""


@pytest.fixture(scope="module")
def lift_played() -> subprocess.CompletedProcess[str]:
    """Return what PLAY prints of Lift, first its golden trace."""
    variables = os.environ | golden.as_in_the_pool()
    return run("-W", "ignore", "-c", PLAY, "Lift", "[3, 1000001, 5]", "golden", env=variables)


@pytest.mark.sim
def test_lift_equals_the_golden_trace_of_its_processor(
    lift_played: subprocess.CompletedProcess[str], record_property: Callable[[str, object], None]
) -> None:
    golden_line = lift_played.stdout.splitlines()[-2]
    compared_with_golden("Lift", Golden.from_json(json.loads(golden_line)), record_property)


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize("task", [task for task in golden.TASKS if task != "Lift"])
def test_task_equals_the_golden_trace_of_its_processor(
    task: str, record_property: Callable[[str, object], None]
) -> None:
    compared_with_golden(task, golden.traced(task, {}), record_property)


def compared_with_golden(task: str, here: Golden, record_property: Callable[[str, object], None]) -> None:
    verdict = golden.compare(task, here.traces[task], here, golden.read())
    assert verdict
    record_property(GOLDEN, f"{verdict}; this is {here.arithmetic.kind}")
    assert verdict.ok, str(verdict)


def test_golden_of_another_processor_is_compared_within_a_tolerance() -> None:
    known = golden.read()[0]
    trace = known.traces["Lift"]
    moved = replace(trace, physics={0: "another"}, states=shifted(trace, 1e-9))
    far = replace(moved, states=shifted(trace, 1e-2))
    redrawn = replace(trace, pictures={0: "another"})
    other = replace(known, arithmetic=replace(known.arithmetic, model="6/143"))
    elsewhere = replace(known, driver="egl: a GPU")

    def verdict(trace: golden.Trace, here: Golden) -> golden.Verdict:
        found = golden.compare("Lift", trace, here, [known])
        assert found
        return found

    assert verdict(trace, known).ok
    assert not verdict(moved, known).ok, "every bit must be equal on the same kind"
    assert not verdict(redrawn, known).ok
    assert verdict(redrawn, elsewhere).ok, "another driver draws other pictures"
    assert verdict(moved, other).ok
    assert "golden of another processor or other versions" in str(verdict(moved, other))
    assert not verdict(far, other).ok
    assert golden.compare("Lift", trace, known, []) is None


def shifted(trace: golden.Trace, by: float) -> dict[int, tuple[float, ...]]:
    return {step: (state[0] + by, *state[1:]) for step, state in trace.states.items()}


@pytest.mark.sim
@pytest.mark.parametrize(
    "task",
    [
        "Lift",
        *(pytest.param(task, marks=pytest.mark.full) for task in ("PickPlaceSingle", "TwoArmPegInHole")),
    ],
)
def test_robosuite_episode_is_the_same_in_another_process_and_order(
    task: str, request: pytest.FixtureRequest
) -> None:
    """One arm with fingers, a task that draws the wanted object, two arms that hold tools."""
    one = (
        request.getfixturevalue("lift_played")
        if task == "Lift"
        else run("-W", "ignore", "-c", PLAY, task, "[3, 1000001, 5]")
    )
    other = run("-W", "ignore", "-c", PLAY, task, "[5, 3, 5, 1000001]")
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in (one, other))
    assert first == second
    assert len(set(first.values())) == 3


@pytest.fixture(scope="module")
def env() -> SimEnv:
    return SimEnv("Lift", CONTRACT)


@pytest.mark.sim
def test_robosuite_observation_has_the_contract(env: SimEnv) -> None:
    env.reset(0)
    seen = env.observe(noise_seed=7)
    assert seen.images[CAMERA].shape == (*CONTRACT.image_size, 3)
    assert seen.images[CAMERA].dtype == np.uint8
    assert seen.proprio.shape == (len(CONTRACT.proprio),)
    assert seen.instruction == TASKS["Lift"]
    assert seen.noise_seed == 7


@pytest.mark.sim
def test_robosuite_pictures_are_upright(env: SimEnv) -> None:
    """The gripper is at the bottom of its own camera's picture: darker there than at the top, which shows the
    bright table.
    """
    env.reset(0)
    picture = env.observe(0).images[CAMERA].astype(float)
    assert picture[-8:].mean() < picture[:8].mean() - 50


@pytest.mark.sim
def test_robosuite_positive_gripper_action_closes(env: SimEnv) -> None:
    """As the contract's action layout states."""
    env.reset(0)
    before = env.proprio[-2:].copy()
    for _ in range(5):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert abs(env.proprio[-2:]).sum() < abs(before).sum()
    assert "plus1_close" in CONTRACT.action[-1]


@pytest.mark.sim
def test_expert_lifts_and_its_demonstration_is_a_function_of_the_seed(env: SimEnv) -> None:
    recordings = [demonstrate(env, Demonstration("Lift", seed, 0.3)) for seed in (0, 1, 2, 0)]
    assert all(recording.success for recording in recordings)
    assert np.array_equal(recordings[0].action, recordings[3].action)
    assert np.array_equal(recordings[0].frames[CAMERA], recordings[3].frames[CAMERA])
    assert not np.array_equal(recordings[0].proprio[0], recordings[1].proprio[0])


# Without cameras: nothing is rendered, so that a task takes seconds.
DEMONSTRATE = """
import json, sys
from sim_workers.demos.recorder import Demonstration, demonstrate
from sim_workers.envs.robosuite import SimEnv, contract
task, seeds = sys.argv[1], json.loads(sys.argv[2])
env = SimEnv(task, contract((), (64, 64), "fast"))
print(json.dumps([demonstrate(env, Demonstration(task, seed, 0.3)).success for seed in seeds]))
"""


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize("task", sorted(set(EXPERTS) - {"Lift"}))
def test_experts_succeed_under_disturbance(task: str) -> None:
    done = run("-W", "ignore", "-c", DEMONSTRATE, task, "[2, 3, 4]")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * 3


def test_experts_have_tasks_and_horizons() -> None:
    assert set(EXPERTS) <= set(TASKS)
    assert all(expert_for(task).horizon > 0 for task in EXPERTS)


@pytest.mark.sim
@pytest.mark.ray
def test_episode_recorded_by_a_worker_equals_a_local_recording(env: SimEnv, lift_store: Path) -> None:
    """The same seed gives the same bytes, in any process and order."""
    storage = open_storage(str(lift_store))
    for seed in (4, 1):
        demonstration = Demonstration("Lift", seed, 0.3)
        assert record(env, storage, demonstration) == load_manifest(storage)[demonstration.episode_id]


@pytest.mark.sim
@pytest.mark.ray
def test_collect_again_records_nothing(lift_store: Path) -> None:
    done = run("-m", "orchestrator", "collect", "--episodes", "6", "--store", str(lift_store))
    assert done.returncode == 0
    assert "already holds 6 of 6 episodes of Lift; nothing to record" in done.stdout


def test_expert_for_an_unsupported_task_raises_one_sentence() -> None:
    with pytest.raises(
        ValueError, match="no scripted expert demonstrates Wipe; there is one for Lift, Stack, PickPlaceCan"
    ):
        expert_for("Wipe")
