"""The tasks as gymnasium environments, for other libraries' loops. Needs the extra `gym`.

    import gymnasium
    import sim_workers.envs.gymnasium_env

    env = gymnasium.make("demoscale/Lift-v0", chunk=8)

`gymnasium.make("sim_workers.envs.gymnasium_env:demoscale/Lift-v0")` saves the second import.
"""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sim_workers.envs.registry import contract_of, make_env
from sim_workers.envs.robosuite import CONTROL_HZ
from sim_workers.envs.tasks import TASKS
from sim_workers.rollout.divergence import refuse_action
from sim_workers.rollout.episode import Env
from sim_workers.rollout.suite import FIRST_EVALUATION_SEED, EpisodeSpec, task_in_ids

FILM_SIZE = (256, 256)


class RolloutEnv(gymnasium.Env[dict[str, Any], npt.NDArray[np.floating[Any]]]):
    """Environment of one task: reward 1 at the first success, which terminates the episode; truncated after
    `horizon` control steps.

    Observation: per camera (H, W, 3) uint8, upright RGB, and "proprio" (P,) float32; `contract` names the
    values. Action: (A,) in [-1, 1], one control step; with `chunk=T` (T, A), T control steps, of which only
    the state after the last is rendered. Info: "success" (in the current state), "first_success" (control
    steps until then, or None), "instruction", "seed" (of the scene).

    step raises ActionError (a ValueError), before anything moves, for an action that is not finite, and
    DivergedError (a RuntimeError) if the simulation diverges; reset() then starts another episode.

    reset(seed=s) starts scene s, the scene of a suite's episode with scene seed s; without a seed, it draws a
    scene that no suite holds. The first reset makes the simulator. A process can have only one: close() the
    first, or use gymnasium.vector.AsyncVectorEnv.
    """

    # gymnasium declares it so
    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand"),
        image_size: tuple[int, int] = (128, 128),
        render_profile: str = "fast",
        horizon: int = 200,
        chunk: int | None = None,
        shift: str = "nominal",
        render_mode: str | None = None,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"there is no task {task}; there are {', '.join(TASKS)}")
        self.contract = contract_of(task, tuple(cameras), image_size, render_profile)
        self.render_mode = render_mode
        self._task, self._horizon, self._shift = task, horizon, shift
        pictures = {
            camera: spaces.Box(0, 255, (*image_size, 3), np.uint8) for camera in self.contract.cameras
        }
        proprio = spaces.Box(-np.inf, np.inf, (len(self.contract.proprio),), np.float32)
        self.observation_space = spaces.Dict({**pictures, "proprio": proprio})
        shape = (len(self.contract.action),)
        self.action_space = spaces.Box(-1.0, 1.0, shape if chunk is None else (chunk, *shape), np.float32)
        self._env: Env | None = None
        self._variant = 0
        self._seed = self._steps = 0
        self._first_success: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; `options` are ignored."""
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(FIRST_EVALUATION_SEED)) if seed is None else seed
        env = self._env_for(EpisodeSpec(self._task, self._seed, self._seed, self._shift).variant)
        env.reset(self._seed)
        self._steps, self._first_success = 0, 0 if env.succeeded else None
        return self._seen(env), self._info(env)

    def step(
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Play the action or the chunk, until its end or that of the episode."""
        env = self._running()
        if np.shape(action) != self.action_space.shape:
            raise ValueError(
                f"the action's shape is {np.shape(action)}; this environment takes {self.action_space.shape}"
            )
        reward, actions = 0.0, np.reshape(action, (-1, len(self.contract.action)))
        for one in actions:
            refuse_action(one, self.contract.action)
        for one in actions:
            env.step(one)
            self._steps += 1
            if env.succeeded and self._first_success is None:
                self._first_success, reward = self._steps, 1.0
            if self._first_success is not None or self._steps >= self._horizon:
                break
        won = self._first_success is not None
        return self._seen(env), reward, won, not won and self._steps >= self._horizon, self._info(env)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a (256, 256, 3) picture from the camera that shows the whole scene; None without a render
        mode.
        """
        env = self._running()
        return env.picture(env.film_camera, FILM_SIZE) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the simulator; a further call does nothing."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def _running(self) -> Env:
        if self._env is None:
            raise RuntimeError("no episode has been started; call reset() first")
        return self._env

    def _env_for(self, variant: int) -> Env:
        """Return the simulator of a variant of the shifted world, rebuilt if the variant has changed."""
        if self._env is None or variant != self._variant:
            self.close()
            self._env, self._variant = make_env(self._task, self.contract, self._shift, variant), variant
        return self._env

    def _seen(self, env: Env) -> dict[str, Any]:
        seen = env.observe(noise_seed=0)
        return {**seen.images, "proprio": seen.proprio}

    def _info(self, env: Env) -> dict[str, Any]:
        return {
            "success": env.succeeded,
            "first_success": self._first_success,
            "instruction": TASKS[self._task],
            "seed": self._seed,
        }


def register() -> None:
    """Register every task with gymnasium as demoscale/TASK-v0; importing this module calls it."""
    for task in TASKS:
        name = f"demoscale/{task_in_ids(task)}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, "sim_workers.envs.gymnasium_env:RolloutEnv", kwargs={"task": task})


register()
