"""Replay of recorded demonstrations in the installed simulator: by states, by actions, or by the scripted
expert that recorded them. Pictures come from any camera, in any size and render profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from sim_workers.demos.recorder import Demonstration, Recording, demonstrate
from sim_workers.envs.robosuite import SimEnv
from sim_workers.rollout.episode import Env

ReplayMode = Literal["states", "actions", "expert"]
"""What is played: every recorded state is set; the recorded actions are executed from the first state or
seed; or the scripted expert plays the same seed with the same disturbance.
"""
TOLERANCE = 1e-3
"""Difference of a joint's position (m, rad) from which on a replay has diverged."""


class ReplayError(ValueError):
    """A demonstration cannot be replayed here: the reason and the fix, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class RecordedDemo:
    """One demonstration as recorded, T control steps."""

    task: str
    states: npt.NDArray[np.float64] | None = None
    """(T, 1 + nq + nv) state before each action: time, positions, velocities (MjSimState.flatten)."""
    actions: npt.NDArray[np.floating[Any]] | None = None
    """(T, A) executed actions in the contract's layout."""
    proprio: npt.NDArray[np.float32] | None = None
    """(T, P) recorded proprioception in the contract's layout; None if unknown."""
    model: str = ""
    """MJCF of the episode; empty if not recorded."""
    same_simulator: bool = False
    """Whether the model can be loaded as it is: it was recorded on the installed series of robosuite."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """robosuite's `ep_meta`; RoboCasa's kitchen and sentence."""
    seed: int | None = None
    """Seed of the scene, where the recording says it."""
    disturbance: float = 0.0
    """Disturbance of the scripted expert, as `Demonstration.disturbance`."""


@dataclass(frozen=True)
class Divergence:
    """Largest absolute differences between a replay and its recording over all steps; None where the
    recording holds nothing to compare with.
    """

    position: float | None = None
    """Of a joint's position, m or rad, or of a component of a quaternion."""
    step: int | None = None
    """First control step, from 0, at which a position differs by more than TOLERANCE; None if none does."""
    proprio: float | None = None
    """Of a proprioceptive value."""
    action: float | None = None
    """Of an action of the scripted expert, played again."""


@dataclass(frozen=True)
class Replay:
    """A demonstration played again."""

    recording: Recording
    divergence: Divergence
    model: Literal["recorded", "installed"]
    """Model in which it was played: the recording's own, or the installed simulator's."""
    steps_to_success: int | None
    """Control steps until the task was done for the first time; None if never, or if not counted."""


def replay(env: Env, demo: RecordedDemo, by: ReplayMode) -> Replay:
    """Play a demonstration again and record it with the contract of `env`.

    Raises ReplayError if the demonstration does not fit the simulator, EpisodeFaultError like
    `SimEnv.step` and `reset`.
    """
    if by == "expert":
        return _by_expert(env, demo)
    if by == "states":
        return _by_states(env, demo)
    return _by_actions(env, demo)


def _by_expert(env: Env, demo: RecordedDemo) -> Replay:
    if demo.seed is None:
        raise ReplayError("it does not say the seed that the scripted expert played")
    recording = demonstrate(env, Demonstration(demo.task, demo.seed, demo.disturbance))
    divergence = Divergence(
        proprio=_largest(recording.proprio, demo.proprio), action=_largest(recording.action, demo.actions)
    )
    return Replay(recording, divergence, "installed", None)


def _by_states(env: Env, demo: RecordedDemo) -> Replay:
    if demo.states is None:
        raise ReplayError("it holds no states; replay it by actions")
    sim, model = _started(env, demo, demo.states)
    film, first = _Film(env), None
    for step, state in enumerate(demo.states):
        sim.set_flat_state(state)
        film.observe()
        if first is None and sim.succeeded:
            first = step
    if first is None and demo.actions is not None:
        # recordings end before the state that the last action leads to, which may be the first success
        sim.anchor_controllers()
        sim.step(demo.actions[-1])
        first = len(demo.states) if sim.succeeded else None
    recording = film.recording(demo.actions, first is not None)
    return Replay(recording, Divergence(proprio=_largest(recording.proprio, demo.proprio)), model, first)


def _by_actions(env: Env, demo: RecordedDemo) -> Replay:
    if demo.actions is None:
        raise ReplayError("it holds no actions; replay it by states")
    model: Literal["recorded", "installed"] = "installed"
    if demo.states is not None:
        _, model = _started(env, demo, demo.states)
    elif demo.seed is not None:
        env.reset(demo.seed)
    else:
        raise ReplayError("it holds neither states nor a seed, so where it starts is unknown")
    film, differences = _Film(env), list[float]()
    first = None
    for step, action in enumerate(demo.actions):
        if demo.states is not None and isinstance(env, SimEnv):
            differences.append(_position_difference(env, demo.states[step]))
        film.observe()
        env.step(action)
        if first is None and env.succeeded:
            first = step + 1
    recording = film.recording(demo.actions, first is not None)
    apart = np.flatnonzero(np.array(differences) > TOLERANCE)
    divergence = Divergence(
        position=max(differences, default=None),
        step=int(apart[0]) if len(apart) else None,
        proprio=_largest(recording.proprio, demo.proprio),
    )
    return Replay(recording, divergence, model, first)


class _Film:
    """Observations of a replay."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._frames: dict[str, list[npt.NDArray[np.uint8]]] = {name: [] for name in env.contract.cameras}
        self._proprio: list[npt.NDArray[np.float32]] = []

    def observe(self) -> None:
        """Add the observation of the current state."""
        seen = self._env.observe(0)
        for camera, picture in seen.images.items():
            self._frames[camera].append(picture)
        self._proprio.append(seen.proprio)

    def recording(self, actions: npt.NDArray[np.floating[Any]] | None, success: bool) -> Recording:
        frames = {camera: np.stack(pictures) for camera, pictures in self._frames.items()}
        width = len(self._env.contract.action)
        given = np.zeros((0, width), np.float32) if actions is None else actions.astype(np.float32)
        return Recording(frames, np.stack(self._proprio), given, success)


def _largest(mine: npt.NDArray[Any], recorded: npt.NDArray[Any] | None) -> float | None:
    """Return the largest absolute difference of (T, D) values over the steps that both have; None if there is
    nothing to compare.
    """
    if recorded is None or recorded.ndim != 2 or recorded.shape[1:] != mine.shape[1:] or not recorded.size:
        return None
    steps = min(len(mine), len(recorded))
    return float(np.abs(mine[:steps].astype(np.float64) - recorded[:steps]).max(initial=0.0))


def _position_difference(sim: SimEnv, state: npt.NDArray[np.float64]) -> float:
    positions = sim.position_count
    return float(np.abs(sim.flat_state[1 : 1 + positions] - state[1 : 1 + positions]).max(initial=0.0))


def _started(
    env: Env, demo: RecordedDemo, states: npt.NDArray[np.float64]
) -> tuple[SimEnv, Literal["recorded", "installed"]]:
    """Put the simulator into the demonstration's first state; return it and which model it has.

    Raises ReplayError if the simulator cannot be put into states, or has other joints.
    """
    if not isinstance(env, SimEnv):
        raise ReplayError("this task's simulator cannot be put into a recorded state")
    model: Literal["recorded", "installed"] = "installed"
    if demo.same_simulator and demo.model and env.loads_models:
        try:
            env.load_model(demo.model, demo.meta)
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ReplayError(
                f"the installed simulator cannot load its model ({type(error).__name__}: {said})"
            ) from error
        model = "recorded"
    elif not env.models_follow_seeds:
        raise ReplayError("it has no model of this series of robosuite, without which its scene is unknown")
    else:
        env.reset(0)
        if demo.model:
            _refuse_other_joints(env, demo.model)
            _place(env, fixed_bodies(demo.model))
    if (width := len(env.flat_state)) != states.shape[1]:
        raise ReplayError(
            f"its states have {states.shape[1]} numbers, {demo.task} here has {width} (time, positions,"
            " velocities): it was recorded with another robot or version"
        )
    env.set_flat_state(states[0], afresh=True)
    if model == "installed":
        # A recorder leaves the controllers as the recorded model's reset left them. The installed model's
        # reset has another pose of the arm, to which they would pull it back.
        env.anchor_controllers()
    return env, model


def _refuse_other_joints(env: SimEnv, xml: str) -> None:
    """Raise ReplayError if the recorded model has other joints than the simulator's, or in another order:
    states would then be set into wrong joints.
    """
    recorded, here = [_plain(name) for name in joints(xml)], [_plain(name) for name in env.joint_names]
    if recorded != here:
        first = next(
            (pair for pair in zip(recorded, here, strict=False) if pair[0] != pair[1]),
            (f"{len(recorded)} joints", f"{len(here)} joints"),
        )
        raise ReplayError(f"its model has the joint {first[0]} where {env.task} here has {first[1]}")


def _plain(joint: str) -> str:
    """Return a joint's name as robosuite 1.4 and 1.5 have it: only the second says which hand a gripper
    is of.
    """
    return joint.replace("gripper0_right_", "gripper0_")


def joints(xml: str) -> list[str]:
    """Return the names of a model's joints in the order of its state; unnamed ones are empty."""
    return [
        element.get("name", "") for element in _worldbody(xml).iter() if element.tag in ("joint", "freejoint")
    ]


@dataclass(frozen=True)
class BodyPose:
    """Pose of a body in the world that no joint moves, such as furniture."""

    name: str
    position: Sequence[float]
    """x, y, z in m."""
    rotation: Sequence[float]
    """Quaternion w, x, y, z."""


def fixed_bodies(xml: str) -> list[BodyPose]:
    """Return the bodies that stand directly in the world and have no joint of their own. Their poses are part
    of the model and not of the state: simulators draw them at a reset (robosuite's door, LIBERO's furniture).
    Robots are left out.
    """
    found = []
    for body in _worldbody(xml).findall("body"):
        name = body.get("name", "")
        if body.find("joint") is not None or body.find("freejoint") is not None:
            continue
        if name.startswith(("robot", "gripper", "mount", "fixed_mount")):
            continue
        position = [float(value) for value in body.get("pos", "0 0 0").split()]
        rotation = [float(value) for value in body.get("quat", "1 0 0 0").split()]
        found.append(BodyPose(name, position, rotation))
    return found


def _place(env: SimEnv, bodies: Sequence[BodyPose]) -> None:
    """Move bodies of the world to poses; those that the simulator does not have are left out."""
    for body in bodies:
        env.place_body(body.name, body.position, body.rotation)


def _worldbody(xml: str) -> ElementTree.Element:
    """Return the world of a model. Raises ReplayError if there is none."""
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ReplayError("its model is no plain MJCF: it declares entities")
    try:
        world = ElementTree.fromstring(xml).find("worldbody")
    except ElementTree.ParseError as error:
        raise ReplayError(f"its model is no XML ({error})") from None
    if world is None:
        raise ReplayError("its model has no worldbody")
    return world
