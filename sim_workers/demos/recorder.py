"""Recording of scripted demonstrations: an expert plays a scene under disturbance; its observations and
intended actions are recorded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.demos.experts import EXPERTS, expert_for
from sim_workers.envs import plugins
from sim_workers.envs.embodiment import DEFAULT, DELTA_POSE, POSE, Embodiment
from sim_workers.envs.registry import is_plugin
from sim_workers.rollout.suite import task_in_ids

DEMONSTRATED_BY = {
    "Sawyer": ("Lift", "Door"),
    "UR5e": ("Door",),
    "Jaco": ("Door",),
    "Kinova3": ("Door",),
    "XArm7": ("Lift", "Stack"),
}
"""Tasks whose expert succeeds with a robot, by robot; a robot that is not listed does all.
`tests/sim_workers/test_embodiment.py` plays them.
"""
LINGER = 4  # control steps recorded from the first success on, so that the film shows it


@dataclass(frozen=True)
class Demonstration:
    """Scene of a demonstration, and its disturbance: standard deviation of the executed action from the
    expert's, in action units.
    """

    task: str
    seed: int
    disturbance: float

    @property
    def episode_id(self) -> str:
        """Id of the episode in the store: task and seed."""
        return f"{task_in_ids(self.task)}-{self.seed:06d}"


@dataclass(frozen=True)
class Recording:
    """Demonstration of L control steps."""

    frames: dict[str, npt.NDArray[np.uint8]]
    """Pictures per camera, (L, H, W, 3)."""
    proprio: npt.NDArray[np.float32]
    """Proprioceptive states, (L, P)."""
    action: npt.NDArray[np.float32]
    """The expert's actions before the disturbance, (L, A)."""
    success: bool


def demonstrated_tasks() -> tuple[str, ...]:
    """Return the tasks of this package that have a scripted expert; of plug-ins, only loading them shows."""
    return tuple(EXPERTS)


def refusal(task: str, embodiment: Embodiment) -> str:
    """Return why no scripted expert demonstrates the task with this robot and controller, as one sentence;
    empty if one does. Raises PluginError for a broken plug-in.
    """
    if is_plugin(task):
        own = plugins.load(task)
        if not own.expert:
            return f"the package of {task} has no scripted expert for it"
        return _no_hand(embodiment) if own.environment else ""
    if task not in EXPERTS:
        return f"no scripted expert does {task}; there is one for {', '.join(EXPERTS)}"
    if refused := _no_hand(embodiment):
        return refused
    if task not in (able := DEMONSTRATED_BY.get(embodiment.robot, tuple(EXPERTS))):
        return (
            f"the scripted expert of {task} does not succeed with {embodiment.robot}; that robot demonstrates"
            f" {', '.join(able)}"
        )
    if embodiment.control_hz != DEFAULT.control_hz:
        return (
            f"the scripted experts act {DEFAULT.control_hz:g} times per second, not"
            f" {embodiment.control_hz:g} times"
        )
    return ""


def _no_hand(embodiment: Embodiment) -> str:
    """Return why scripted experts do not act through the controller; empty if they do."""
    if embodiment.controller in (DELTA_POSE, POSE):
        return ""
    return (
        f"the scripted experts command the hand, which {embodiment.controller} does not take; they support"
        f" {DELTA_POSE} and {POSE}"
    )


class Demonstrator:
    """The demonstrator of one episode: a scripted expert, and how far a disturbance moves its actions. Raises
    ValueError if the task has no expert.
    """

    def __init__(self, env: Any, demonstration: Demonstration) -> None:
        self._env, self._disturbance = env, demonstration.disturbance
        self._rng = np.random.default_rng([demonstration.seed, 1])
        self._task = plugins.load(demonstration.task) if is_plugin(demonstration.task) else None
        if self._task is None:
            self._expert: Any = expert_for(demonstration.task)
        else:
            if not self._task.expert:
                raise ValueError(f"the package of {demonstration.task} has no scripted expert for it")
            self._expert = self._task.expert()
        self.horizon: int = self._expert.horizon

    def act(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the expert's action in the current state, which is recorded, and the disturbed one, which is
        executed.
        """
        env, rng = self._env, self._rng
        if self._task is None:
            action = self._expert.act(env.state)
            executed = action.copy()
            executed[:3] += self._disturbance * rng.standard_normal(3)
            executed[5] += self._disturbance / 2 * rng.standard_normal()
            return env.from_delta_pose(action), env.from_delta_pose(executed)
        action = np.asarray(self._expert.act(env), np.float64)
        executed = action
        if self._task.noise:
            executed = action + self._disturbance * np.array(self._task.noise) * rng.standard_normal(
                len(action)
            )
        if self._task.environment:
            return env.from_delta_pose(action), env.from_delta_pose(executed)
        return action, executed


def demonstrate(env: Any, demonstration: Demonstration) -> Recording:
    """Play and record one demonstration; a function of the demonstration alone.

    env: the task's environment. The position and turn of robosuite's hand are disturbed, the gripper is not;
    of a plug-in's action what its `noise` says. The recorded action is the expert's own, so a learner sees
    recoveries from states that a perfect expert never visits (DART: Laskey et al. 2017, arXiv 1703.09327).
    Raises EpisodeFaultError like `SimEnv.step` and `reset`.
    """
    env.reset(demonstration.seed)
    player = Demonstrator(env, demonstration)
    frames: dict[str, list[Any]] = {camera: [] for camera in env.contract.cameras}
    proprio: list[Any] = []
    actions: list[Any] = []
    lingered = 0
    while len(actions) < player.horizon and lingered < LINGER:
        seen = env.observe(0)
        for camera, picture in seen.images.items():
            frames[camera].append(picture)
        proprio.append(seen.proprio)
        action, executed = player.act()
        actions.append(action)
        env.step(executed)
        lingered = lingered + 1 if env.succeeded or lingered else 0
    stacked = {camera: np.stack(pictures) for camera, pictures in frames.items()}
    return Recording(stacked, np.stack(proprio), np.stack(actions).astype(np.float32), env.succeeded)
