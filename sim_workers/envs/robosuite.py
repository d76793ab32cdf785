"""One robosuite environment that renders only on demand.

One environment per process: two share a GL context and silently corrupt each other's pictures.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.interface import Contract, Observation
from sim_workers.envs import shifts
from sim_workers.envs.render import PROFILES, build_context, choose_backend, render
from sim_workers.envs.tasks import TASKS, hands, has_fingers
from sim_workers.rollout.divergence import DivergedError, refuse_action, refuse_divergence

CONTROL_HZ = 20.0
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
HAND_KEYS, FINGER_KEYS = ("eef_pos", "eef_quat"), ("gripper_qpos",)
PROPRIO_KEYS = tuple(f"robot0_{key}" for key in HAND_KEYS + FINGER_KEYS)
_HAND = (*(f"eef_{axis}_m" for axis in "xyz"), *(f"eef_quat_{axis}" for axis in "xyzw"))
_FINGERS = ("finger_left_m", "finger_right_m")
_MOVE = (*(f"eef_delta_{axis}_x0.05m" for axis in "xyz"), *(f"eef_delta_rot{axis}_x0.5rad" for axis in "xyz"))
_GRIP = ("gripper_minus1_open_plus1_close",)
PROPRIO, ACTION = _HAND + _FINGERS, _MOVE + _GRIP
"""Names of the proprioceptive values and of the action dimensions of one arm with fingers."""
_alive = ""
"""Task of this process's open simulator; empty if there is none."""


def simulator_version() -> str:
    """Return the versions on which a trajectory depends."""
    return f"robosuite {version('robosuite')}, mujoco {version('mujoco')}"


def contract(
    cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str, task: str = "Lift"
) -> Contract:
    """Return the contract of Pandas under robosuite's OSC_POSE controller (robosuite 1.5
    `default_panda.json`).

    The same for all tasks of one arm with fingers. The values of two arms are concatenated, their names
    prefixed with the arm's.
    """
    proprio, action = (_HAND + _FINGERS, _MOVE + _GRIP) if has_fingers(task) else (_HAND, _MOVE)
    if len(arms := hands(task)) > 1:
        proprio, action = (
            tuple(f"{arm}_{name}" for arm in arms for name in names) for names in (proprio, action)
        )
    return Contract(cameras, image_size, render_profile, proprio, action, CONTROL_HZ, simulator_version())


class SimEnv:
    """Robosuite task with one or two arms.

    reset(seed) puts the scene into a state that depends on the seed alone, not on earlier episodes;
    step(action) advances one control step (1/20 s); observe() renders the contract's cameras. `succeeded` is
    robosuite's own success check of the current state. The world is the `variant`-th of a `shift`
    (`shifts.py`); by default the nominal one.
    """

    film_camera = "frontview"
    # Defaults for subclasses, which build another simulator.
    _open = False
    _env: Any = None
    _fast: Any = None
    _proprio_keys: Sequence[str] = PROPRIO_KEYS

    def __init__(
        self,
        task: str,
        contract: Contract,
        shift: str = "nominal",
        variant: int = 0,
        fast_control: bool = True,
    ) -> None:
        """fast_control: use `fast_control.py`, whose states and observations are bit-identical."""
        self._claim(task, contract, TASKS[task])
        choose_backend()
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import robosuite  # noqa: F401, imported here so that the next line silences its logger

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        self._env = shifts.build(
            task,
            shift,
            variant,
            robots=["Panda"] * len(hands(task)),
            **BUILD_ARGUMENTS,
        )
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        # Where an episode draws its target object, robosuite draws from a set of names, whose order differs
        # between processes.
        self._draws_object = getattr(self._env, "single_object_mode", 0) == 1
        if self._draws_object:
            self._env.single_object_mode = 2  # the object is the one named beforehand
        keys = HAND_KEYS + FINGER_KEYS if has_fingers(task) else HAND_KEYS
        self._proprio_keys = [f"{arm}_{key}" for arm in hands(task) for key in keys]
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}
        if fast_control:
            from sim_workers.envs.fast_control import FastStep  # it imports the simulator

            try:
                self._fast = FastStep(self._env)
            except ValueError as unknown:
                logging.getLogger(__name__).warning(
                    "%s takes robosuite's own control steps: %s", task, unknown
                )

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
        does.

        Raises ActionError, before anything moves, if a value is not finite, and DivergedError if the
        simulation diverges; it then needs a reset. Any other error is the simulator's own.
        """
        refuse_action(action, self.contract.action)
        try:
            self._advance(np.clip(action, -1.0, 1.0))
        except Exception as error:  # the controllers' linear algebra fails on a state that is not finite
            try:
                self._refuse_divergence()
            except DivergedError as diverged:
                raise diverged from error
            raise
        self._refuse_divergence()

    def _advance(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Make one control step with a finite (A,) action in [-1, 1]."""
        if self._fast:
            self._fast(action)
            self._low_dim = {}  # computed when `state` is read
        else:
            self._low_dim, _, _, _ = self._env.step(action)

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
