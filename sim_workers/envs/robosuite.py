"""One robosuite environment that renders only on demand.

One environment per process: two share a GL context and silently corrupt each other's pictures.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.interface import Contract, Observation
from sim_workers.envs import embodiment as embodiments
from sim_workers.envs import shifts
from sim_workers.envs.embodiment import (
    DEFAULT,
    FINGER_KEYS,
    HAND_KEYS,
    JOINT_POSITION,
    POSE,
    Embodiment,
    embodiment_of,
)
from sim_workers.envs.render import PROFILES, build_context, choose_backend, render
from sim_workers.envs.tasks import TASKS, hands, has_fingers
from sim_workers.rollout.divergence import ActionError, DivergedError, refuse_action, refuse_divergence

CONTROL_HZ = embodiments.DEFAULT_HZ
BUILD_ARGUMENTS: Mapping[str, Any] = {
    "has_renderer": False,
    "has_offscreen_renderer": True,
    "use_camera_obs": False,
    "control_freq": CONTROL_HZ,
    "ignore_done": True,
    "hard_reset": False,  # the model and its GL context are built once; a soft reset re-samples every pose
    "renderer": "mujoco",
    "seed": 0,  # sizes drawn when the model is built; each episode then gets its own generator in reset()
}
"""Arguments with which robosuite's and LIBERO's simulators are built."""
PROPRIO_KEYS = tuple(f"robot0_{key}" for key in HAND_KEYS + FINGER_KEYS)
_DEFAULT = embodiments.contract_of(DEFAULT, "Lift", (), (1, 1), "fast", "")
PROPRIO, ACTION = _DEFAULT.proprio, _DEFAULT.action
"""Names of the proprioceptive values and of the action dimensions of the default embodiment."""
_alive = ""
"""Task of this process's open simulator; empty if there is none."""


def simulator_version() -> str:
    """Return the versions on which a trajectory depends."""
    return f"robosuite {version('robosuite')}, mujoco {version('mujoco')}"


def contract(
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    render_profile: str,
    task: str = "Lift",
    embodiment: Embodiment = DEFAULT,
) -> Contract:
    """Return the contract of robosuite's arms, by default of Pandas under robosuite's OSC_POSE controller
    (robosuite 1.5 `default_panda.json`).

    The same for all tasks of one arm with fingers. The values of two arms are concatenated, their names
    prefixed with the arm's. Raises EmbodimentError if the task cannot have the embodiment.
    """
    return embodiments.contract_of(embodiment, task, cameras, image_size, render_profile, simulator_version())


_said = set[str]()


def _say_once(task: str, why: str) -> None:
    """Log, once per process and reason, that a simulator takes robosuite's own control steps."""
    if why not in _said:
        _said.add(why)
        logging.getLogger(__name__).warning("%s takes robosuite's own control steps: %s", task, why)


class SimEnv:
    """Robosuite task with one or two arms, which the contract describes.

    reset(seed) puts the scene into a state that depends on the seed alone, not on earlier episodes;
    step(action) advances one control step; observe() renders the contract's cameras. `succeeded` is
    robosuite's own success check of the current state. The world is the `variant`-th of a `shift`
    (`shifts.py`); by default the nominal one.
    """

    film_camera = "frontview"
    draws_with_gl = True
    """Whether `render_check` finds a GL driver in this process after a picture."""
    loads_models = True
    """Whether `load_model` can load the model of a recording of the installed series of robosuite."""
    models_follow_seeds = True
    """Whether a reset builds the model that a recording without a model was made in, up to the poses of
    furniture and sizes of objects.
    """
    # Defaults for subclasses, which build another simulator.
    _open = False
    _env: Any = None
    _fast: Any = None
    _proprio_keys: Sequence[str] = PROPRIO_KEYS
    _controller = embodiments.DELTA_POSE
    own_step = "nothing else was asked for"
    """Why control steps are robosuite's own instead of the lean ones; empty if they are lean."""

    def __init__(
        self,
        task: str,
        contract: Contract,
        shift: str = "nominal",
        variant: int = 0,
        fast_control: bool = True,
        environment: str = "",
        instruction: str = "",
    ) -> None:
        """fast_control: use `fast_control.py`, whose states and observations are bit-identical, where it
        supports the embodiment. environment, instruction: of a task outside of this package, the name that
        robosuite registered and the sentence.

        Raises EmbodimentError if the task cannot have the contract's robot, controller, rate or cameras.
        """
        name = environment or task
        found = embodiment_of(contract, name)
        self._claim(task, contract, instruction or TASKS[task])
        choose_backend()
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import robosuite  # noqa: F401, imported here so that the next line silences its logger

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        options: dict[str, Any] = {
            **BUILD_ARGUMENTS,
            "robots": [found.robot] * len(hands(name)),
            "control_freq": contract.control_hz,
        }
        if found.controller != embodiments.DELTA_POSE:
            from sim_workers.envs.robosuite_controllers import controller_config  # it imports the simulator

            options["controller_configs"] = controller_config(found.robot, found.controller)
        self._controller = found.controller
        self._env = shifts.build(name, shift, variant, contract.poses, **options)
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        # Where an episode draws its target object, robosuite draws from a set of names, whose order differs
        # between processes.
        self._draws_object = getattr(self._env, "single_object_mode", 0) == 1
        if self._draws_object:
            self._env.single_object_mode = 2  # the object is the one named beforehand
        self._proprio_keys = [f"{arm}_{key}" for arm in hands(name) for key in found.keys(name)]
        self._grips = has_fingers(name)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}
        if fast_control:
            self._make_lean()

    def _make_lean(self) -> None:
        """Take lean control steps from now on, if they support the environment."""
        from sim_workers.envs.fast_control import FastStep  # it imports the simulator

        try:
            self._fast = FastStep(self._env)
            self.own_step = ""
        except ValueError as unknown:
            self.own_step = str(unknown)
            _say_once(self.task, str(unknown))

    def _claim(self, task: str, contract: Contract, instruction: str) -> None:
        """Register as the process's only simulator. Raises RuntimeError if it has another."""
        global _alive
        if _alive:
            raise RuntimeError(
                f"this process already has a simulator, of {_alive}; close it first, because two in one"
                " process change each other's pictures"
            )
        _alive, self._open = task, True
        self.task, self.contract, self.instruction = task, contract, instruction

    def reset(self, seed: int) -> None:
        """Start the episode of scene `seed`. Raises DivergedError if the simulation diverges."""
        if self._draws_object:
            ids, name = (
                (self._env.object_to_id, "object_id")
                if hasattr(self._env, "object_to_id")
                else (self._env.nut_to_id, "nut_id")
            )
            setattr(self._env, name, int(np.random.default_rng([seed, 2]).choice(sorted(ids.values()))))
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._low_dim = self._env.reset()
        self._refuse_divergence()

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply one (A,) action for one control step; values outside [-1, 1] are clipped, as the controller
        does, but for the targets of absolute poses and joint positions.

        Raises ActionError, before anything moves, if a value is not finite or a rotation is none, and
        DivergedError if the simulation diverges; it then needs a reset. Any other error is the simulator's
        own.
        """
        refuse_action(action, self.contract.action)
        command = self._command(action)
        try:
            self._advance(command)
        except Exception as error:  # the controllers' linear algebra fails on a state that is not finite
            try:
                self._refuse_divergence()
            except DivergedError as diverged:
                raise diverged from error
            raise
        self._refuse_divergence()

    def _command(self, action: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Return robosuite's action for a finite (A,) action of the contract."""
        if self._controller not in (POSE, JOINT_POSITION):
            return np.clip(action, -1.0, 1.0)
        parts = []
        for arm in np.asarray(action, np.float64).reshape(len(self._env.robots), -1):
            moves, grip = (arm[:-1], arm[-1:]) if self._grips else (arm, arm[:0])
            if self._controller == POSE:
                moves = np.concatenate([moves[:3], self._rotation_vector(moves[3:])])
            parts += [moves, np.clip(grip, -1.0, 1.0)]
        return np.concatenate(parts)

    def _rotation_vector(self, two_columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        from robosuite.utils import transform_utils as transforms

        from sim_workers.envs.robosuite_controllers import rotation_of

        try:
            rotation = rotation_of(two_columns)
        except ValueError as error:
            raise ActionError(f"the policy's action is no pose: {error}") from None
        vector: npt.NDArray[np.float64] = transforms.quat2axisangle(transforms.mat2quat(rotation))
        return vector

    def from_delta_pose(self, action: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the contract's action that commands the same goal as a (7,) displacement of the hand in the
        current state, for one arm.

        Raises EmbodimentError if the controller is one of the joints.
        """
        if self._controller == embodiments.DELTA_POSE:
            return action
        if self._controller != POSE:
            raise embodiments.EmbodimentError(
                f"controller: a displacement of the hand is no action of {self._controller}"
            )
        from robosuite.utils import transform_utils as transforms

        (robot,) = self._env.robots
        control = robot.part_controllers[robot.arms[0]]
        site = self._env.sim.model.site_name2id(control.ref_name)
        data, base = self._env.sim.data, control.origin_ori
        move = np.clip(action[:6], -1.0, 1.0) * control.output_max
        turn = transforms.quat2mat(transforms.axisangle2quat(move[3:]))
        rotation = base @ turn @ base.T @ data.site_xmat[site].reshape(3, 3)
        place = data.site_xpos[site] + base @ move[:3]
        return np.concatenate([place, rotation[:, 0], rotation[:, 1], action[6:]])

    def _advance(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Make one control step with an action of robosuite."""
        if self._fast:
            self._fast(action)
            self._low_dim = {}  # computed when `state` is read
        else:
            self._low_dim, _, _, _ = self._env.step(action)

    @property
    def flat_state(self) -> npt.NDArray[np.float64]:
        """State as recordings keep it, (1 + nq + nv,): time, positions and velocities of every joint."""
        flat: npt.NDArray[np.float64] = self._env.sim.get_state().flatten()
        return flat

    def set_flat_state(self, state: npt.NDArray[np.float64], afresh: bool = False) -> None:
        """Put the simulation into a recorded state; the controllers keep their goals. afresh: also forget the
        solver's warm start, as robosuite's recorder does before the first state.
        """
        if afresh:
            self._env.sim.reset()
        self._env.sim.set_state_from_flattened(state)
        self._env.sim.forward()
        if track := getattr(self._env, "_post_process", None):  # LIBERO: what it derives from the state
            track()
        self._low_dim = self._env._get_observations(force_update=True)

    def load_model(self, xml: str, meta: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Replace the simulation's model by a recorded one, in MJCF, with a new GL context; control steps are
        robosuite's own from then on. meta: robosuite's `ep_meta` of the recording.

        Raises ValueError and others if the installed simulator cannot load it.
        """
        self._fast = None
        self._env.set_ep_meta(dict(meta))
        self._env.reset_from_xml_string(self._env.edit_model_xml(xml))
        build_context(self._env.sim, PROFILES[self.contract.render_profile], self.contract.image_size)

    @property
    def position_count(self) -> int:
        """Number of joint positions in the state (nq)."""
        return int(self._env.sim.model.nq)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the model's joints in the order of the state."""
        return tuple(self._env.sim.model.joint_names)

    def place_body(self, name: str, position: Sequence[float], rotation: Sequence[float]) -> None:
        """Move a body of the world, such as furniture, until the next reset; nothing if there is none of this
        name. position: m. rotation: quaternion w, x, y, z.
        """
        model = self._env.sim.model
        if name in model.body_names:
            model.body_pos[model.body_name2id(name)] = position
            model.body_quat[model.body_name2id(name)] = rotation

    def anchor_controllers(self) -> None:
        """Make the current pose the initial one of arms and grippers, like a reset into that pose."""
        for robot in self._env.robots:
            for arm in robot.arms:
                controller = robot.composite_controller.part_controllers[arm]
                controller.update_initial_joints(self._env.sim.data.qpos[controller.qpos_index])
                if robot.has_gripper[arm]:
                    robot.gripper[arm].current_action = np.zeros(robot.gripper[arm].dof)
            robot.composite_controller.update_state()
            robot.composite_controller.reset()

    def _refuse_divergence(self) -> None:
        sim = self._env.sim  # a hard reset makes a new one
        refuse_divergence(sim.model._model, sim.data._data)

    @property
    def succeeded(self) -> bool:
        """Whether robosuite's success check of the task holds now."""
        return bool(self._env._check_success())

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        """Positions and velocities of every joint, (N,): equal for equal trajectories."""
        return np.concatenate([self._env.sim.data.qpos, self._env.sim.data.qvel])

    @property
    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """Robosuite's named low-dimensional observations, which a scripted expert may use and a policy may
        not.
        """
        if not self._low_dim and self._fast:
            self._low_dim = self._fast.observations()
        return self._low_dim

    @property
    def proprio(self) -> npt.NDArray[np.float32]:
        """Proprioceptive state, (P,) float32, laid out as the contract's `proprio`."""
        if not self._proprio_keys:
            return np.zeros(0, np.float32)
        return np.concatenate([self.state[key] for key in self._proprio_keys]).astype(np.float32)

    def pictures(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Render an (H, W, 3) uint8 picture per camera of the contract."""
        return {camera: self.picture(camera, self.contract.image_size) for camera in self.contract.cameras}

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Render an (H, W, 3) uint8 picture from any camera of the scene, in any size `(H, W)`."""
        return render(self._env.sim, camera, size)

    def observe(self, noise_seed: int) -> Observation:
        """Return the policy's observation of the current state, rendered by this call."""
        return Observation(self.pictures(), self.proprio, self.instruction, noise_seed)

    def close(self) -> None:
        """Close the simulator, after which the process may make another one; a second call does nothing."""
        global _alive
        if self._open:
            self._open, _alive = False, ""
            if self._env is not None:
                self._env.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
