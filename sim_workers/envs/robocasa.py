"""RoboCasa-24 (arXiv 2406.02523): kitchen tasks of a Panda on a wheeled base, as "Video Generators are Robot
Policies" evaluates them.

Test status: RoboCasa is on no package index and its kitchens (5 GB) come from its own servers, so NO EPISODE
HAS BEEN PLAYED on the real kitchens. Tested once: this adapter with the code of RoboCasa v0.2 (commit
756598a) on robosuite 1.5.2 and MuJoCo 3.9.0, with boxes in place of all meshes and objects. The 24 tasks
could be reset, stepped and rendered; their sentences, horizons and action layout are the ones below; an
episode (of the one task tried) was the same in another process and order. The boxes do not show whether the
real meshes compile and behave.

Manual installation, in the environment of this project (--no-deps, because RoboCasa's own pins, MuJoCo 3.2.6
and numpy 1.23, do not apply):

    git clone --branch v0.2 https://github.com/robocasa/robocasa && pip install --no-deps -e robocasa && pip
    install lxml termcolor python -m robocasa.scripts.download_kitchen_assets
"""

import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.envs.render import PROFILES, build_context, choose_backend
from sim_workers.envs.robosuite import ACTION, CONTROL_HZ, SimEnv, simulator_version

ROBOCASA_24 = {
    "robocasa/PnPCounterToCab": "pick the {object} from the counter and place it in the cabinet",
    "robocasa/PnPCabToCounter": "pick the {object} from the cabinet and place it on the counter",
    "robocasa/PnPCounterToSink": "pick the {object} from the counter and place it in the sink",
    "robocasa/PnPSinkToCounter": (
        "pick the {object} from the sink and place it on the {container} located on the counter"
    ),
    "robocasa/PnPCounterToMicrowave": "pick the {object} from the counter and place it in the microwave",
    "robocasa/PnPMicrowaveToCounter": (
        "pick the {object} from the microwave and place it on {container} located on the counter"
    ),
    "robocasa/PnPCounterToStove": "pick the {object} from the plate and place it in the {container}",
    "robocasa/PnPStoveToCounter": (
        "pick the {object} from the {source} and place it {preposition} the {container}"
    ),
    "robocasa/OpenSingleDoor": "open the {fixture} door",
    "robocasa/CloseSingleDoor": "close the {fixture} door",
    "robocasa/OpenDoubleDoor": "open the {fixture} doors",
    "robocasa/CloseDoubleDoor": "close the {fixture} doors",
    "robocasa/OpenDrawer": "open the {side} drawer",
    "robocasa/CloseDrawer": "close the {side} drawer",
    "robocasa/TurnOnSinkFaucet": "turn on the sink faucet",
    "robocasa/TurnOffSinkFaucet": "turn off the sink faucet",
    "robocasa/TurnSinkSpout": "turn the sink spout to the {side}",
    "robocasa/TurnOnStove": "turn on the {knob} burner of the stove",
    "robocasa/TurnOffStove": "turn off the {knob} burner of the stove",
    "robocasa/CoffeeSetupMug": (
        "pick the {object} from the counter and place it under the coffee machine dispenser"
    ),
    "robocasa/CoffeeServeMug": (
        "pick the {object} from under the coffee machine dispenser and place it on the counter"
    ),
    "robocasa/CoffeePressButton": "press the button on the coffee machine to serve coffee",
    "robocasa/TurnOnMicrowave": "press the start button on the microwave",
    "robocasa/TurnOffMicrowave": "press the stop button on the microwave",
}
"""Every task and the pattern of its sentences. A policy receives the episode's own sentence, with the braces
filled in.
"""

ROBOCASA_12_LABELLED = tuple(
    f"robocasa/{task}"
    for task in (
        "PnPCounterToCab",
        "PnPCounterToSink",
        "PnPMicrowaveToCounter",
        "PnPStoveToCounter",
        "TurnOnMicrowave",
        "TurnOnSinkFaucet",
        "TurnOffStove",
        "CoffeePressButton",
        "CoffeeSetupMug",
        "CloseSingleDoor",
        "OpenSingleDoor",
        "OpenDrawer",
    )
)
"""Tasks whose demonstrations have actions in the paper's action-free experiment; those of the other twelve
are videos only (its Fig. 4).
"""

HORIZON = 1000
"""Control steps per episode in the paper's script, for every task (`max_traj_len`; the script plays 62 chunks
of 16, that is 992).
"""
REGISTERED_HORIZONS = dict.fromkeys(ROBOCASA_24, 500) | {
    "robocasa/PnPCounterToSink": 700,
    "robocasa/PnPCounterToMicrowave": 600,
    "robocasa/OpenDoubleDoor": 1000,
    "robocasa/CloseDoubleDoor": 700,
    "robocasa/CoffeeSetupMug": 600,
    "robocasa/CoffeeServeMug": 600,
    "robocasa/CoffeePressButton": 300,
}
"""Control steps per episode in RoboCasa's own registry (v0.1 and v0.2,
`robocasa/utils/dataset_registry.py`).
"""

SCENES = ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10))
"""(layout, style) of the evaluation kitchens; styles 9 and 10 are in no demonstration."""
EPISODES_PER_SCENE = 10
CAMERAS = ("robot0_eye_in_hand", "robot0_agentview_left", "robot0_agentview_right")
"""Cameras of the policy, in the input order of the paper's video model."""
PROPRIO_KEYS = {"robot0_base_to_eef_pos": 3, "robot0_base_to_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Observations and their widths. Hand pose relative to the base (m; quaternion x, y, z, w): its world pose
depends mostly on the kitchen's place.
"""
PROPRIO = tuple(f"{key}_{i}" for key, width in PROPRIO_KEYS.items() for i in range(width))
"""Proprioceptive names as `demoscale import --proprio` writes them, so that a store of RoboCasa's
demonstrations matches this simulator.
"""
PARTS = {"right": 6, "right_gripper": 1, "base": 3, "torso": 1}
"""Widths of the parts of an action; one last dimension, the mode, follows them."""
ARM_MODE = -1.0
"""Value of the mode in which the arm moves and the base rests."""


class RobocasaError(DemoscaleError):
    """RoboCasa is not installed, or differs from the version that this file supports."""


def scene_of(seed: int) -> tuple[int, int]:
    """Return an episode's (layout, style): ten consecutive seeds per kitchen, cyclically; any fifty
    consecutive seeds cover the paper's list.
    """
    return SCENES[seed % (len(SCENES) * EPISODES_PER_SCENE) // EPISODES_PER_SCENE]


def environment_kwargs(task: str) -> dict[str, Any]:
    """Return the arguments of RoboCasa's own `eval_utils.py`, without cameras, which are rendered per
    observation instead.

    The robot is v0.1's PandaMobile under its name since robosuite 1.5.
    """
    return {
        "env_name": task.removeprefix("robocasa/"),
        "robots": "PandaOmron",
        "obj_instance_split": "B",  # object instances that are in no demonstration
        "generative_textures": None,
        "randomize_cameras": False,
        "translucent_robot": False,
        "layout_and_style_ids": SCENES,
        "control_freq": CONTROL_HZ,
        "use_object_obs": True,
        "use_camera_obs": False,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        # the default viewer leaks over hard resets, which every episode needs: a kitchen is sampled when it
        # is built
        "renderer": "mujoco",
        "seed": 0,
    }


def instruction_of(ep_meta: Mapping[str, Any]) -> str:
    """Return the episode's sentence, from `env.get_ep_meta()` or a demonstration's `ep_meta`. Raises
    RobocasaError if there is none.
    """
    sentence = str(ep_meta.get("lang") or "").strip()
    if not sentence:
        raise RobocasaError("RoboCasa gave this episode no instruction (`lang` in its ep_meta)")
    return sentence


def environment_action(
    action: npt.NDArray[np.floating[Any]], split: Mapping[str, tuple[int, int]], width: int
) -> npt.NDArray[np.float64]:
    """Return the environment's (width,) action for the policy's (7,), six of the arm and one of the gripper;
    base and torso rest in ARM_MODE.

    split: part -> (first, last + 1), the environment's own. RoboCasa's order is arm, gripper, base, torso, so
    the seven values are followed by 0, 0, 0, 0, -1. A plain robosuite PandaOmron has the torso in the
    gripper's place, so the order is read, not assumed. Raises RobocasaError for other parts.
    """
    if {part: last - first for part, (first, last) in split.items()} != PARTS or width != sum(
        PARTS.values()
    ) + 1:
        raise RobocasaError(
            f"the robot's action is not arm, gripper, base, torso and a mode: {dict(split)} of {width}"
            " dimensions"
        )
    full = np.zeros(width)
    full[slice(*split["right"])] = action[: PARTS["right"]]
    full[slice(*split["right_gripper"])] = action[PARTS["right"] :]
    full[-1] = ARM_MODE
    return full


def proprio_of(low_dim: Mapping[str, npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.float32]:
    """Return (9,) float32, laid out as PROPRIO."""
    values: npt.NDArray[np.float32] = np.concatenate([low_dim[key] for key in PROPRIO_KEYS]).astype(
        np.float32
    )
    return values


def shells_as_meshes(xml: str) -> str:
    """Return a model for MuJoCo 3.9, where shell inertia is an attribute of the mesh and not of its geom (one
    microwave of v0.2 needs it).
    """
    root = ElementTree.fromstring(xml)
    hollow = set()
    for geom in root.iter("geom"):
        if geom.get("mesh") and geom.attrib.pop("shellinertia", "false") == "true":
            hollow.add(geom.get("mesh"))
    for mesh in root.iter("mesh"):
        if mesh.get("name") in hollow:
            mesh.set("inertia", "shell")
    return ElementTree.tostring(root, encoding="unicode")


def robocasa_version() -> str:
    """Return RoboCasa's version. Raises RobocasaError, with the remedy, if it is missing or a version with
    other task names.
    """
    try:
        found = version("robocasa")
    except PackageNotFoundError:
        raise RobocasaError(
            "RoboCasa is not installed here; the docstring of robocasa.py says how to install v0.2"
        ) from None
    if not found.startswith("0.2."):
        raise RobocasaError(
            f"RoboCasa {found} is installed; the 24 tasks have these names in v0.2 only, see the docstring of"
            " robocasa.py"
        )
    return found


def robocasa_contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """Return the contract of RoboCasa's robot with a resting base: the arm deltas of `robosuite.py`, relative
    to the base.
    """
    simulator = f"robocasa {robocasa_version()}, {simulator_version()}"
    return Contract(cameras, image_size, render_profile, PROPRIO, ACTION, CONTROL_HZ, simulator)


@cache
def _robosuite_with_kitchens() -> Any:
    """Return the robosuite module after RoboCasa has registered its tasks in it. Raises RobocasaError if
    RoboCasa or its assets are missing.
    """
    robocasa_version()
    choose_backend()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    import robosuite

    spec = find_spec("robocasa")
    assert spec is not None
    assert spec.origin is not None
    if not (Path(spec.origin).parent / "models/assets/objects").is_dir():
        raise RobocasaError(
            "RoboCasa's kitchens are missing; `python -m robocasa.scripts.download_kitchen_assets` downloads"
            " them (5 GB)"
        )
    # Its __init__ asserts versions of MuJoCo and numpy other than the installed ones; optimize=1 skips the
    # asserts. The contract names the versions.
    module = sys.modules["robocasa"] = module_from_spec(spec)
    try:
        exec(compile(Path(spec.origin).read_text(), spec.origin, "exec", optimize=1), module.__dict__)
    except BaseException:
        del sys.modules["robocasa"]
        raise
    kitchen = module.Kitchen
    as_written = kitchen.edit_model_xml
    kitchen.edit_model_xml = lambda env, xml: shells_as_meshes(as_written(env, xml))
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


class RobocasaEnv(SimEnv):
    """Task of RoboCasa-24, with the methods of SimEnv.

    reset(seed) builds the kitchen `scene_of(seed)` and furnishes it with a generator that depends on the seed
    alone.
    """

    film_camera = "robot0_frontview"
    models_follow_seeds = False  # each episode has a kitchen of its own

    def __init__(self, task: str, contract: Contract, robosuite: Any = None) -> None:
        """robosuite: the module with RoboCasa's tasks; by default the installed one, in which RoboCasa
        registers them.
        """
        self._claim(task, contract, "")  # each episode has its own sentence
        robosuite = robosuite or _robosuite_with_kitchens()
        controller = robosuite.load_composite_controller_config(controller=None, robot="PandaOmron")
        self._env = robosuite.make(**environment_kwargs(task), controller_configs=controller)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}
        self._split: dict[str, tuple[int, int]] = {}

    def reset(self, seed: int) -> None:
        """Start the episode of seed `seed` in a newly built kitchen with a new GL context.

        Raises RobocasaError if RoboCasa built another kitchen, DivergedError if the scene is unstable.
        """
        env = self._env
        env.layout_and_style_ids = [scene_of(seed)]
        env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._low_dim = env.reset()
        meta = env.get_ep_meta()
        if (built := (meta["layout_id"], meta["style_id"])) != scene_of(seed):
            raise RobocasaError(f"RoboCasa built kitchen {built}, not {scene_of(seed)}")
        self.instruction = instruction_of(meta)
        self._split = dict(env.robots[0].composite_controller._action_split_indexes)
        build_context(env.sim, PROFILES[self.contract.render_profile], self.contract.image_size)
        self._refuse_divergence()

    def load_model(self, xml: str, meta: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Build the kitchen of a recording, from its model and its `ep_meta`. Raises RobocasaError if that
        has no instruction, and others if the model cannot be loaded.
        """
        self.instruction = instruction_of(meta)
        super().load_model(xml, meta)
        self._split = dict(self._env.robots[0].composite_controller._action_split_indexes)

    def _advance(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Make one control step with a finite (7,) action in [-1, 1]."""
        self._low_dim, _, _, _ = self._env.step(environment_action(action, self._split, self._env.action_dim))

    @property
    def proprio(self) -> npt.NDArray[np.float32]:
        """Proprioceptive state, (9,) float32, laid out as PROPRIO."""
        return proprio_of(self._low_dim)
