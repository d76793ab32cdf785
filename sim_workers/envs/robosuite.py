"""One robosuite environment, made to be asked rather than to push: it renders only when somebody looks.

One environment per process: two share a GL context and quietly spoil each other's pictures.
"""

import logging
import sys
from collections.abc import Sequence
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
HAND_KEYS, FINGER_KEYS = ("eef_pos", "eef_quat"), ("gripper_qpos",)
PROPRIO_KEYS = tuple(f"robot0_{key}" for key in HAND_KEYS + FINGER_KEYS)
_HAND = (*(f"eef_{axis}_m" for axis in "xyz"), *(f"eef_quat_{axis}" for axis in "xyzw"))
_FINGERS = ("finger_left_m", "finger_right_m")
_MOVE = (*(f"eef_delta_{axis}_x0.05m" for axis in "xyz"), *(f"eef_delta_rot{axis}_x0.5rad" for axis in "xyz"))
_GRIP = ("gripper_minus1_open_plus1_close",)
PROPRIO, ACTION = _HAND + _FINGERS, _MOVE + _GRIP
"""Of one arm with fingers."""
_alive = ""
"""The task of this process's simulator, while there is one."""


def simulator_version() -> str:
    """The versions a trajectory depends on."""
    return f"robosuite {version('robosuite')}, mujoco {version('mujoco')}"


def contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str, task: str = "Lift") -> Contract:
    """What Pandas under robosuite's OSC_POSE controller offer and take (robosuite 1.5 `default_panda.json`).

    The same for all tasks of one arm with fingers. Two arms stand one after the other, their values told apart by the arm's name.
    """
    proprio, action = (_HAND + _FINGERS, _MOVE + _GRIP) if has_fingers(task) else (_HAND, _MOVE)
    if len(arms := hands(task)) > 1:
        proprio, action = (tuple(f"{arm}_{name}" for arm in arms for name in names) for names in (proprio, action))
    return Contract(cameras, image_size, render_profile, proprio, action, CONTROL_HZ, simulator_version())


class SimEnv:
    """A robosuite task, of one arm or two.

    reset(seed) puts the scene into a state that depends on the seed alone, not on what ran before; step(action) advances one
    control step (1/20 s); look() renders the contract's cameras. `succeeded` is robosuite's own success check of the current state.
    The world is the `variant`-th of a `shift` (`shifts.py`); by default the nominal one.
    """

    film_camera = "frontview"
    # What an environment of another simulator, made by a subclass, may leave as it is.
    _open = False
    _env: Any = None
    _fast: Any = None
    _proprio_keys: Sequence[str] = PROPRIO_KEYS

    def __init__(self, task: str, contract: Contract, shift: str = "nominal", variant: int = 0, fast_control: bool = True) -> None:
        """`fast_control` is faster, not different: the same states and observations to the last bit (`control.py`)."""
        self._claim(task, contract, TASKS[task])
        choose_backend()
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import robosuite  # noqa: F401, says what it has to say, which the next line silences

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        self._env = shifts.build(
            task,
            shift,
            variant,
            robots=["Panda"] * len(hands(task)),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,  # the model and its GL context are built once; a soft reset re-samples every pose
            renderer="mujoco",
            seed=0,  # sizes drawn when the model is built; each episode then gets its own generator in reset()
        )
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        # Where the episode draws which object is asked for, robosuite draws from a set of names, whose order changes from process to process.
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
                logging.getLogger(__name__).warning("%s takes robosuite's own control steps: %s", task, unknown)

    def _claim(self, task: str, contract: Contract, instruction: str) -> None:
        """Be the process's one simulator; RuntimeError if it has another."""
        global _alive
        if _alive:
            raise RuntimeError(f"this process already has a simulator, of {_alive}; close that one first, because two spoil each other's pictures")
        _alive, self._open = task, True
        self.task, self.contract, self.instruction = task, contract, instruction

    def reset(self, seed: int) -> None:
        """Start the episode of scene `seed`; DivergedError if the scene does not hold."""
        if self._draws_object:
            ids, name = (self._env.object_to_id, "object_id") if hasattr(self._env, "object_to_id") else (self._env.nut_to_id, "nut_id")
            setattr(self._env, name, int(np.random.default_rng([seed, 2]).choice(sorted(ids.values()))))
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._low_dim = self._env.reset()
        self._refuse_divergence()

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply one (A,) action for one control step; values outside [-1, 1] are clipped, as the controller does.

        ActionError, before anything moves, for one that holds a value that is not finite. DivergedError if the simulation diverges; it then
        needs a reset. Any other error is the simulator's own.
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
            self._low_dim = {}  # until somebody asks
        else:
            self._low_dim, _, _, _ = self._env.step(action)

    def _refuse_divergence(self) -> None:
        sim = self._env.sim  # another one after a hard reset
        refuse_divergence(sim.model._model, sim.data._data)

    @property
    def succeeded(self) -> bool:
        return bool(self._env._check_success())

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        """(N,) positions and velocities of every joint: equal for equal trajectories."""
        return np.concatenate([self._env.sim.data.qpos, self._env.sim.data.qvel])

    @property
    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """Robosuite's named low-dimensional observations: what a scripted expert may use and a policy may not."""
        if not self._low_dim and self._fast:
            self._low_dim = self._fast.observations()
        return self._low_dim

    @property
    def proprio(self) -> npt.NDArray[np.float32]:
        """(P,) float32, laid out as the contract's `proprio`."""
        return np.concatenate([self.state[key] for key in self._proprio_keys]).astype(np.float32)

    def pictures(self) -> dict[str, npt.NDArray[np.uint8]]:
        """(H, W, 3) uint8 per camera of the contract."""
        return {camera: self.picture(camera, self.contract.image_size) for camera in self.contract.cameras}

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """One (H, W, 3) uint8 picture of any camera of the scene, in any size: for people, not for the policy."""
        return render(self._env.sim, camera, size)

    def look(self, noise_seed: int) -> Observation:
        """What the policy sees now."""
        return Observation(self.pictures(), self.proprio, self.instruction, noise_seed)

    def close(self) -> None:
        """Make room for another one in this process; a second time does nothing."""
        global _alive
        if self._open:
            self._open, _alive = False, ""
            if self._env is not None:
                self._env.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
