"""Any gymnasium environment as an `Env`: a task of a plug-in (`plugins.py`). Needs the extra `gym`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from policy.interface import Contract, Observation
from sim_workers.envs.plugins import Expert, Task
from sim_workers.rollout.divergence import DivergedError, refuse_action
from sim_workers.rollout.episode import Env

Picture = Callable[[Any, Any], npt.NDArray[np.uint8]]
"""(gymnasium environment, its last observation) -> an (H, W, 3) RGB picture."""


def rendered(env: Any, _observation: Any) -> npt.NDArray[np.uint8]:
    """Return what `env.render()` draws in the mode `rgb_array`."""
    return np.asarray(env.render(), np.uint8)


@dataclass(frozen=True)
class GymnasiumTask:
    """How a gymnasium environment is read."""

    make: Callable[[tuple[int, int]], Any]
    """(rows, columns of the pictures) -> the environment, without a time limit and without gymnasium's
    checker, which forbids steps after the first success. Pictures of another size are resized.
    """
    instruction: str
    action: tuple[str, ...]
    """One name per dimension of the action, with its unit."""
    proprio: tuple[str, ...]
    """One name per value of `state`; empty for none."""
    state: Callable[[Any, Any], Any]
    """(environment, observation) -> the proprioception, (P,)."""
    physics: Callable[[Any, Any], Any]
    """(environment, observation) -> positions and velocities of everything that moves, (N,)."""
    control_hz: float
    """Steps of the environment per second."""
    horizon: int
    simulator: str
    """Name and version of the environment's package and of its physics."""
    success: str = "is_success"
    """Key of `info` that says whether the task is done in the current state."""
    pictures: dict[str, Picture] = field(default_factory=lambda: {"render": rendered})
    """Camera -> its picture."""
    expert: Callable[[], Expert] | None = None
    noise: tuple[float, ...] = ()
    """Of the executed action per unit of disturbance, as `plugins.Task.noise`."""

    def contract(
        self, cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str
    ) -> Contract:
        """Return the conventions of the environment; every render profile draws the same."""
        return Contract(
            cameras, image_size, render_profile, self.proprio, self.action, self.control_hz, self.simulator
        )

    def task(self) -> Task:
        """Return the task that an entry point leads to."""
        return Task(
            self.instruction,
            tuple(self.pictures),
            self.contract,
            lambda contract: GymnasiumEnv(self, contract),
            self.horizon,
            self.expert,
            self.noise,
        )


class GymnasiumEnv(Env):
    """One gymnasium environment with the methods of `Env`."""

    def __init__(self, task: GymnasiumTask, contract: Contract) -> None:
        self.contract, self._task = contract, task
        self.gymnasium: gymnasium.Env[Any, Any] = task.make(contract.image_size)
        """The environment, for a scripted expert."""
        self.film_camera = next(iter(task.pictures))
        self._seen: Any = None
        self._info: dict[str, Any] = {}

    def reset(self, seed: int) -> None:
        """Start the episode of scene `seed`. Raises DivergedError if its state is not finite."""
        self._seen, self._info = self.gymnasium.reset(seed=seed)
        self._refuse_divergence()

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply one (A,) action, clipped to the environment's space. Raises ActionError if a value is not
        finite, and DivergedError if the state is not finite afterwards.
        """
        refuse_action(action, self.contract.action)
        space = self.gymnasium.action_space
        if isinstance(space, gymnasium.spaces.Box):
            action = np.clip(action, space.low, space.high).astype(space.dtype)
        self._seen, _, _, _, self._info = self.gymnasium.step(action)
        self._refuse_divergence()

    def _refuse_divergence(self) -> None:
        for what, values in (("physics", self.physics), ("proprioception", self.proprio)):
            if not np.isfinite(values).all():
                raise DivergedError(
                    f"the simulation diverged: the {what} of the environment holds a value that is not"
                    " finite; check the actions before it and the scene"
                )

    @property
    def succeeded(self) -> bool:
        """Whether the last step's info says that the task is done."""
        return bool(self._info.get(self._task.success, False))

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        """State of everything that moves, (N,)."""
        return np.asarray(self._task.physics(self.gymnasium, self._seen), np.float64)

    @property
    def proprio(self) -> npt.NDArray[np.float32]:
        """Proprioceptive state, (P,)."""
        if not self.contract.proprio:
            return np.zeros(0, np.float32)
        return np.asarray(self._task.state(self.gymnasium, self._seen), np.float32)

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return an (H, W, 3) picture, resized if the environment draws it in another size."""
        from PIL import Image

        drawn = self._task.pictures[camera](self.gymnasium, self._seen)
        if drawn.shape[:2] == size:
            return drawn
        scaled = Image.fromarray(drawn).resize((size[1], size[0]), Image.Resampling.BOX)
        return np.asarray(scaled, np.uint8)

    def observe(self, noise_seed: int) -> Observation:
        """Return the policy's observation of the current state."""
        images = {camera: self.picture(camera, self.contract.image_size) for camera in self.contract.cameras}
        return Observation(images, self.proprio, self._task.instruction, noise_seed)

    def close(self) -> None:
        """Close the environment."""
        self.gymnasium.close()
