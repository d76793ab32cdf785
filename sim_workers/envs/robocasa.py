"""RoboCasa-24 (arXiv 2406.02523): kitchen tasks of a Panda on a wheeled base, as "Video Generators are Robot Policies" evaluates them.

What has and has not been run: RoboCasa is on no package index and its kitchens (5 GB) come from its own servers, so NO EPISODE HAS BEEN PLAYED
on the real kitchens. What was done once: this adapter ran the code of RoboCasa v0.2 (commit 756598a) on robosuite 1.5.2 and MuJoCo 3.9.0 with boxes
in place of all meshes and things; its 24 tasks could be reset, stepped and looked at, their sentences, horizons and action layout are the ones below,
and an episode (of the one task tried) was the same in another process and order. A box cannot show whether the real meshes compile and behave.

To be installed by hand, in the environment of this project (its own pins, MuJoCo 3.2.6 and numpy 1.23, are not wanted, hence --no-deps):

    git clone --branch v0.2 https://github.com/robocasa/robocasa && pip install --no-deps -e robocasa && pip install lxml termcolor
    python -m robocasa.scripts.download_kitchen_assets
"""

import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
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
    "robocasa/PnPSinkToCounter": "pick the {object} from the sink and place it on the {container} located on the counter",
    "robocasa/PnPCounterToMicrowave": "pick the {object} from the counter and place it in the microwave",
    "robocasa/PnPMicrowaveToCounter": "pick the {object} from the microwave and place it on {container} located on the counter",
    "robocasa/PnPCounterToStove": "pick the {object} from the plate and place it in the {container}",
    "robocasa/PnPStoveToCounter": "pick the {object} from the {source} and place it {preposition} the {container}",
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
    "robocasa/CoffeeSetupMug": "pick the {object} from the counter and place it under the coffee machine dispenser",
    "robocasa/CoffeeServeMug": "pick the {object} from under the coffee machine dispenser and place it on the counter",
    "robocasa/CoffeePressButton": "press the button on the coffee machine to serve coffee",
    "robocasa/TurnOnMicrowave": "press the start button on the microwave",
    "robocasa/TurnOffMicrowave": "press the stop button on the microwave",
}
"""Every task and the pattern of its sentences. What a policy is told is the episode's own sentence, in which the braces are filled."""

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
"""The paper's action-free experiment: these tasks' demonstrations have actions, the other twelve are videos only (its Fig. 4, named as trained)."""

HORIZON = 1000
"""Control steps per episode in the paper's script, for every task (`max_traj_len`; it plays 62 chunks of 16, that is 992)."""
REGISTERED_HORIZONS = dict.fromkeys(ROBOCASA_24, 500) | {
    "robocasa/PnPCounterToSink": 700,
    "robocasa/PnPCounterToMicrowave": 600,
    "robocasa/OpenDoubleDoor": 1000,
    "robocasa/CloseDoubleDoor": 700,
    "robocasa/CoffeeSetupMug": 600,
    "robocasa/CoffeeServeMug": 600,
    "robocasa/CoffeePressButton": 300,
}
"""Control steps per episode in RoboCasa's own registry (v0.1 and v0.2, `robocasa/utils/dataset_registry.py`)."""

SCENES = ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10))
"""(layout, style) of the evaluation kitchens; styles 9 and 10 are in no demonstration."""
EPISODES_PER_SCENE = 10
CAMERAS = ("robot0_eye_in_hand", "robot0_agentview_left", "robot0_agentview_right")
"""In the order in which the paper's video model takes them."""
PROPRIO_KEYS = {"robot0_base_to_eef_pos": 3, "robot0_base_to_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Observations and their widths. The hand as seen from the base (m; quaternion x, y, z, w): in the world it says mostly where the kitchen is."""
PROPRIO = tuple(f"{key}_{i}" for key, width in PROPRIO_KEYS.items() for i in range(width))
"""As `python -m jobs.ingest --proprio` names them, so that a store of RoboCasa's demonstrations and this simulator agree."""
PARTS = {"right": 6, "right_gripper": 1, "base": 3, "torso": 1}
"""Widths of the parts of an action; one last dimension, the mode, follows them."""
ARM_MODE = -1.0
"""Value of the mode that lets the arm move and the base rest."""


class RobocasaError(DemoscaleError):
    """RoboCasa is missing here, or is not what this file was written for."""


def scene_of(seed: int) -> tuple[int, int]:
    """(layout, style) of an episode: ten consecutive seeds in each kitchen, over and over; fifty in a row are the paper's list."""
    return SCENES[seed % (len(SCENES) * EPISODES_PER_SCENE) // EPISODES_PER_SCENE]


def environment_kwargs(task: str) -> dict[str, Any]:
    """What RoboCasa is asked for: its own `eval_utils.py`, without cameras, which are rendered when the policy looks.

    The robot is v0.1's PandaMobile under the name it has had since robosuite 1.5.
    """
    return {
        "env_name": task.removeprefix("robocasa/"),
        "robots": "PandaOmron",
        "obj_instance_split": "B",  # things no demonstration showed
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
        "renderer": "mujoco",  # the default viewer leaks over hard resets, and every episode is one: a kitchen is drawn when it is built
        "seed": 0,
    }


def instruction_of(ep_meta: Mapping[str, Any]) -> str:
    """The episode's sentence, from `env.get_ep_meta()` or from a demonstration's attribute `ep_meta`."""
    sentence = str(ep_meta.get("lang") or "").strip()
    if not sentence:
        raise RobocasaError("RoboCasa gave this episode no sentence (`lang` in its ep_meta)")
    return sentence


def environment_action(action: npt.NDArray[np.floating[Any]], split: Mapping[str, tuple[int, int]], width: int) -> npt.NDArray[np.float64]:
    """(width,) for the environment from the policy's (7,): six of the arm, one of the gripper; base and torso rest, the mode is the arm's.

    split: part -> (first, last + 1), the environment's own. RoboCasa orders arm, gripper, base, torso, so that the arm's seven are followed by
    0, 0, 0, 0, -1; a plain robosuite PandaOmron has the torso where RoboCasa has the gripper, hence nothing is assumed.
    """
    if {part: last - first for part, (first, last) in split.items()} != PARTS or width != sum(PARTS.values()) + 1:
        raise RobocasaError(f"the robot's action is not arm, gripper, base, torso and a mode: {dict(split)} of {width} dimensions")
    full = np.zeros(width)
    full[slice(*split["right"])] = action[: PARTS["right"]]
    full[slice(*split["right_gripper"])] = action[PARTS["right"] :]
    full[-1] = ARM_MODE
    return full


def proprio_of(low_dim: Mapping[str, npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.float32]:
    """(9,) float32, laid out as PROPRIO."""
    values: npt.NDArray[np.float32] = np.concatenate([low_dim[key] for key in PROPRIO_KEYS]).astype(np.float32)
    return values


def shells_as_meshes(xml: str) -> str:
    """A model with hollow things as MuJoCo 3.9 wants them: a property of the mesh, no longer of the geom that shows it (one microwave of v0.2)."""
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
    """RobocasaError, with the mend, if there is none or one of the versions that renamed the tasks."""
    try:
        found = version("robocasa")
    except PackageNotFoundError:
        raise RobocasaError("RoboCasa is not installed here; the docstring of robocasa.py says how to install v0.2") from None
    if not found.startswith("0.2."):
        raise RobocasaError(f"RoboCasa {found} is installed; the 24 tasks have these names in v0.2 only, see the docstring of robocasa.py")
    return found


def robocasa_contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """What RoboCasa's robot offers and takes while its base rests: our arm's deltas, relative to the base."""
    simulator = f"robocasa {robocasa_version()}, {simulator_version()}"
    return Contract(cameras, image_size, render_profile, PROPRIO, ACTION, CONTROL_HZ, simulator)


@cache
def _robosuite_with_kitchens() -> Any:
    """robosuite, after RoboCasa has registered its tasks there."""
    robocasa_version()
    choose_backend()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    import robosuite

    spec = find_spec("robocasa")
    assert spec is not None
    assert spec.origin is not None
    if not (Path(spec.origin).parent / "models/assets/objects").is_dir():
        raise RobocasaError("RoboCasa's kitchens are missing; `python -m robocasa.scripts.download_kitchen_assets` downloads them (5 GB)")
    # Its __init__ asserts one MuJoCo and one numpy, other than the ones robosuite 1.5.2 runs on here. The contract names what is used instead.
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
    """A task of RoboCasa-24, with the methods of SimEnv.

    reset(seed) builds the kitchen `scene_of(seed)` and furnishes it by a generator that depends on the seed alone.
    """

    film_camera = "robot0_frontview"

    def __init__(self, task: str, contract: Contract, robosuite: Any = None) -> None:
        """robosuite: the module with RoboCasa's tasks; by default the installed one, in which RoboCasa registers them."""
        self._claim(task, contract, "")  # the sentence is the episode's
        robosuite = robosuite or _robosuite_with_kitchens()
        controller = robosuite.load_composite_controller_config(controller=None, robot="PandaOmron")
        self._env = robosuite.make(**environment_kwargs(task), controller_configs=controller)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}
        self._split: dict[str, tuple[int, int]] = {}

    def reset(self, seed: int) -> None:
        """Start the episode of seed `seed`: always a new kitchen, and with it a new GL context."""
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

    def _advance(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Make one control step with a finite (7,) action in [-1, 1]."""
        self._low_dim, _, _, _ = self._env.step(environment_action(action, self._split, self._env.action_dim))

    @property
    def proprio(self) -> npt.NDArray[np.float32]:
        """(9,) float32, laid out as PROPRIO."""
        return proprio_of(self._low_dim)
