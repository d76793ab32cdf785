"""RoboCasa-24 without its kitchen assets; see the docstring of sim_workers/envs/robocasa.py."""

import json
import os
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
from conftest import run

from robocasa_records import EP_META, KITCHEN_SPLIT, PLAIN_SPLIT, SENTENCES
from sim_workers.envs import robocasa
from sim_workers.envs.robocasa import (
    CAMERAS,
    HORIZON,
    PROPRIO,
    PROPRIO_KEYS,
    REGISTERED_HORIZONS,
    ROBOCASA_12_LABELLED,
    ROBOCASA_24,
    SCENES,
    RobocasaEnv,
    RobocasaError,
    environment_action,
    environment_kwargs,
    instruction_of,
    proprio_of,
    robocasa_contract,
    scene_of,
    shells_as_meshes,
)
from sim_workers.envs.robosuite import ACTION
from sim_workers.rollout.suite import Suite


@pytest.fixture
def ep_meta() -> dict[str, Any]:
    """Return the metadata of one episode, as recorded from RoboCasa v0.2: see robocasa_records.py."""
    return dict(json.loads(EP_META))


# -- tables --------------------------------------------------------------------------------------------------


def test_robocasa_has_24_tasks_of_which_12_are_labelled() -> None:
    assert len(ROBOCASA_24) == 24
    assert len(set(ROBOCASA_12_LABELLED)) == 12
    assert set(ROBOCASA_12_LABELLED) < set(ROBOCASA_24)


@pytest.mark.parametrize("task", ROBOCASA_24)
def test_robocasa_instruction_pattern_matches_the_simulator(task: str) -> None:
    pattern = re.sub(r"\\\{\w+\\\}", r"[a-z ]+", re.escape(ROBOCASA_24[task]))
    assert re.fullmatch(pattern, SENTENCES[task.removeprefix("robocasa/")])


def test_robocasa_registered_horizons_are_listed() -> None:
    assert set(REGISTERED_HORIZONS) == set(ROBOCASA_24)
    assert Counter(REGISTERED_HORIZONS.values()) == {500: 17, 600: 3, 700: 2, 1000: 1, 300: 1}
    assert max(REGISTERED_HORIZONS.values()) == HORIZON


# -- episodes ------------------------------------------------------------------------------------------------


def test_robocasa_suite_of_fifty_episodes_has_ten_in_each_of_five_kitchens() -> None:
    for block in (0, 1):
        scenes = Counter(
            scene_of(spec.scene_seed)
            for spec in Suite(("robocasa/OpenDrawer",), 50, HORIZON, block).episode_list()
        )
        assert scenes == dict.fromkeys(SCENES, 10)
    assert [scene_of(seed) for seed in (0, 9, 10, 49, 50)] == [(1, 1), (1, 1), (2, 2), (7, 10), (1, 1)]


def test_robocasa_environment_arguments_equal_the_benchmark() -> None:
    """Compared with the arguments in RoboCasa's robocasa/utils/eval_utils.py."""
    upstream = {
        "obj_instance_split": "B",
        "generative_textures": None,
        "randomize_cameras": False,
        "translucent_robot": False,
        "layout_and_style_ids": ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10)),
        "ignore_done": True,
        "use_object_obs": True,
        "has_renderer": False,
        "has_offscreen_renderer": True,
    }
    asked = environment_kwargs("robocasa/OpenDrawer")
    assert upstream.items() <= asked.items()
    assert (asked["env_name"], asked["robots"], asked["control_freq"]) == ("OpenDrawer", "PandaOmron", 20.0)


def test_robocasa_episode_has_its_own_instruction(ep_meta: dict[str, Any]) -> None:
    assert instruction_of(ep_meta) == "pick the kettle electric from the counter and place it in the cabinet"
    assert (ep_meta["layout_id"], ep_meta["style_id"]) == scene_of(33)
    with pytest.raises(RobocasaError, match="gave this episode no instruction"):
        instruction_of({**ep_meta, "lang": ""})


# -- actions and proprioception ------------------------------------------------------------------------------

SEVEN = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])


def test_robocasa_action_of_seven_dimensions_becomes_twelve() -> None:
    assert environment_action(SEVEN, KITCHEN_SPLIT, 12).tolist() == [*SEVEN, 0, 0, 0, 0, -1]
    assert environment_action(SEVEN, PLAIN_SPLIT, 12).tolist() == [*SEVEN[:6], 0, 0, 0, 0, 1, -1]


@pytest.mark.parametrize(
    ("split", "width"),
    [
        (KITCHEN_SPLIT, 11),
        ({"right": (0, 7), "right_gripper": (7, 8)}, 12),
        ({**KITCHEN_SPLIT, "head": (11, 13)}, 14),
    ],
)
def test_robocasa_action_for_another_robot_raises(split: dict[str, tuple[int, int]], width: int) -> None:
    with pytest.raises(RobocasaError, match="not arm, gripper, base, torso and a mode"):
        environment_action(SEVEN, split, width)


def test_robocasa_proprioception_is_the_hand_in_the_base_frame() -> None:
    low_dim = {
        key: np.full(width, 10.0 * place) + np.arange(width)
        for place, (key, width) in enumerate(PROPRIO_KEYS.items())
    }
    assert proprio_of(low_dim).tolist() == [0, 1, 2, 10, 11, 12, 13, 20, 21]
    assert PROPRIO[3] == "robot0_base_to_eef_quat_0"


# The robot of the benchmark, on robosuite's own table, with both orders of its parts.
MOVE = """
import json, sys
import numpy as np
from sim_workers.envs.render import choose_backend
from sim_workers.envs.robocasa import environment_action, proprio_of
choose_backend()
import robosuite
moved = []
for order in (None, ["right", "right_gripper", "base", "torso"]):
    controller = robosuite.load_composite_controller_config(controller=None, robot="PandaOmron")
    if order:
        controller["composite_controller_specific_configs"] = {"body_part_ordering": order}
    env = robosuite.make("Lift", robots="PandaOmron", controller_configs=controller, has_renderer=False, has_offscreen_renderer=False,
        use_camera_obs=False, control_freq=20.0, ignore_done=True, renderer="mujoco", seed=0)
    first = last = env.reset()
    rest = [name for name in env.sim.model.joint_names if name.startswith("mobilebase0")]
    before = np.array([env.sim.data.get_joint_qpos(name) for name in rest])
    split = dict(env.robots[0].composite_controller._action_split_indexes)
    for _ in range(10):
        last, *_ = env.step(environment_action(np.array([0, 0, 0.5, 0, 0, 0, 1.0]), split, env.action_dim))
    after = np.array([env.sim.data.get_joint_qpos(name) for name in rest])
    moved.append([split, (proprio_of(last) - proprio_of(first)).tolist(), np.abs(after - before).tolist()])
    env.close()
print(json.dumps(moved))
"""


@pytest.mark.full
@pytest.mark.sim
def test_robocasa_robot_moves_its_arm_alone() -> None:
    done = run("-W", "ignore", "-c", MOVE)
    assert done.returncode == 0, done.stderr
    plain, kitchen = json.loads(done.stdout.splitlines()[-1])
    for (split, moved, base), expected in ((plain, PLAIN_SPLIT), (kitchen, KITCHEN_SPLIT)):
        assert {part: tuple(places) for part, places in split.items()} == expected
        assert moved[2] > 0.04  # the hand went up
        assert moved[7] < -0.01  # a finger closed
        assert len(base) == 4
        assert max(base) < 0.01  # neither wheels nor torso moved
    assert np.allclose(plain[1], kitchen[1], atol=1e-5)


# -- loading -------------------------------------------------------------------------------------------------


def test_robocasa_missing_or_of_another_version_raises_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(robocasa, "version", nowhere)
    with pytest.raises(RobocasaError, match="RoboCasa is not installed here"):
        robocasa_contract(CAMERAS, (64, 64), "fast")
    monkeypatch.setattr(robocasa, "version", lambda name: "1.0.1")
    with pytest.raises(
        RobocasaError, match=r"RoboCasa 1\.0\.1 is installed; the 24 tasks have these names in v0\.2 only"
    ):
        robocasa_contract(CAMERAS, (64, 64), "fast")


def stand_in(folder: Path, version: str = "0.2.0") -> Path:
    """Make an installed package `robocasa` that, like the real one, insists on other versions than ours and
    corrects its models' XML.
    """
    (folder / f"robocasa-{version}.dist-info").mkdir(parents=True)
    (folder / f"robocasa-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: robocasa\nVersion: {version}\n"
    )
    (folder / "robocasa").mkdir()
    (folder / "robocasa" / "__init__.py").write_text(
        "import mujoco\nassert mujoco.__version__ == '3.2.6'\n"
        "class Kitchen:\n    def edit_model_xml(self, xml): return xml.replace('wood', 'steel')\n"
    )
    return folder


LOAD = """
from sim_workers.envs import robocasa
print(robocasa.robocasa_contract((), (64, 64), "fast").simulator)
try:
    robocasa._robosuite_with_kitchens()
except robocasa.RobocasaError as error:
    print(error)
else:
    from robocasa import Kitchen
    print(Kitchen().edit_model_xml('<wood><geom mesh="m" shellinertia="true" /><mesh name="m" /></wood>'))
"""


@pytest.mark.sim
def test_robocasa_loads_with_other_package_versions_and_needs_its_kitchens(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(stand_in(tmp_path))}
    without = run("-W", "ignore", "-c", LOAD, env=environment).stdout.splitlines()
    assert without[0].startswith("robocasa 0.2.0, robosuite 1.5.2, mujoco ")
    assert without[1].startswith("RoboCasa's kitchens are missing; ")
    (tmp_path / "robocasa/models/assets/objects").mkdir(parents=True)
    done = run("-W", "ignore", "-c", LOAD, env=environment)
    assert (
        done.stdout.splitlines()[1] == '<steel><geom mesh="m" /><mesh name="m" inertia="shell" /></steel>'
    ), done.stderr


def test_shells_as_meshes_keep_the_mass_of_a_shell() -> None:
    """A hollow box: MuJoCo 3.9 refuses the old attribute and gives the corrected model the mass of a
    shell.
    """
    corners = " ".join(f"{x} {y} {z}" for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
    old = (
        f'<mujoco><asset><mesh name="m" vertex="{corners}"/><mesh name="n"'
        f' vertex="{corners}"/></asset><worldbody><body><freejoint/><geom type="mesh" mesh="m"'
        ' shellinertia="true"/></body><body pos="9 0 0"><freejoint/><geom type="mesh"'
        ' mesh="n"/></body></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match="inertia should be specified in the mesh asset"):
        mujoco.MjModel.from_xml_string(old)
    masses = mujoco.MjModel.from_xml_string(shells_as_meshes(old)).body_mass[1:]
    assert masses == pytest.approx([24_000, 8_000])  # 24 square metres and 8 cubic ones, 1000 kg each


# -- the adapter ---------------------------------------------------------------------------------------------


class Simulation:
    """The part of robosuite's simulation that `sim_workers.envs.render` and `sim_workers.rollout.divergence`
    use; every picture is white.
    """

    def __init__(self) -> None:
        self.flags = np.zeros(mujoco.mjtRndFlag.mjNRNDFLAG)
        self.sizes: list[tuple[int, int]] = []
        model = mujoco.MjModel.from_xml_string("<mujoco/>")  # nothing that could diverge
        self.model = SimpleNamespace(
            vis=SimpleNamespace(quality=SimpleNamespace(offsamples=None)), _model=model
        )
        self.data = SimpleNamespace(_data=mujoco.MjData(model))
        context = SimpleNamespace(scn=SimpleNamespace(flags=self.flags))
        context.update_offscreen_size = lambda width, height: self.sizes.append((width, height))
        self._render_context_offscreen = context

    def render(self, camera_name: str, height: int, width: int) -> Any:
        return np.full((height, width, 3), 255, np.uint8)


class Kitchen:
    """The part of robosuite's environment that RobocasaEnv uses; it records its arguments."""

    action_dim = 12

    def __init__(self, ep_meta: dict[str, Any], **kwargs: Any) -> None:
        self.kwargs, self.ep_meta, self.rng, self.sim = (
            kwargs,
            ep_meta,
            np.random.default_rng(kwargs["seed"]),
            Simulation(),
        )
        self.layout_and_style_ids: Any = kwargs["layout_and_style_ids"]
        self.done: list[Any] = []
        controller = type("Controller", (), {"_action_split_indexes": KITCHEN_SPLIT})
        self.robots = [type("Robot", (), {"composite_controller": controller})]

    def reset(self) -> dict[str, Any]:
        ((layout, style),) = self.layout_and_style_ids
        drawn = self.rng.uniform(size=9)
        self.ep_meta = {
            **self.ep_meta,
            "layout_id": layout,
            "style_id": style,
            "lang": f"open drawer {drawn[0]}",
        }
        return {key: drawn[:width] for key, width in PROPRIO_KEYS.items()}

    def get_ep_meta(self) -> dict[str, Any]:
        return self.ep_meta

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self.done.append(action)
        return {key: np.zeros(width) for key, width in PROPRIO_KEYS.items()}, 0.0, False, {}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, ep_meta: dict[str, Any]) -> RobocasaEnv:
    class Robosuite:
        load_composite_controller_config = staticmethod(
            lambda controller, robot: {"type": "HYBRID_MOBILE_BASE"}
        )
        make = staticmethod(lambda **kwargs: Kitchen(ep_meta, **kwargs))

    monkeypatch.setattr(robocasa, "version", lambda name: "0.2.0")
    return RobocasaEnv("robocasa/OpenDrawer", robocasa_contract(CAMERAS, (64, 64), "fast"), Robosuite)


def test_robocasa_env_has_the_contract(env: RobocasaEnv) -> None:
    env.reset(12)
    seen = env.observe(noise_seed=7)
    assert list(seen.images) == list(env.contract.cameras)
    assert env._env.sim.sizes == [(64, 64)], "each new kitchen gets a GL context of the contract's size"
    assert seen.proprio.shape == (len(env.contract.proprio),)
    assert env.contract.action == ACTION
    assert seen.instruction.startswith("open drawer 0.")
    env.step(2 * SEVEN)
    assert env._env.done[0].tolist() == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 0, 0, 0, 0, -1]


def test_robocasa_kitchen_and_instruction_depend_on_the_seed_alone(env: RobocasaEnv) -> None:
    said = {}
    for seed in (12, 1_000_041, 12, 3):
        env.reset(seed)
        assert env._env.layout_and_style_ids == [scene_of(seed)]
        assert said.setdefault(seed, env.instruction) == env.instruction
    assert len(set(said.values())) == 3


def test_robocasa_reset_with_another_kitchen_raises(
    env: RobocasaEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env._env, "get_ep_meta", lambda: {"layout_id": 8, "style_id": 1, "lang": "open"})
    with pytest.raises(RobocasaError, match=r"built kitchen \(8, 1\), not \(2, 2\)"):
        env.reset(12)
