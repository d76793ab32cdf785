"""How far an episode of robosuite's tasks comes, read from the simulator's state: reached, grasped, lifted,
placed.

Reading changes nothing. Heights and distances are in metres; tasks that are not in LADDERS have no stages.
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.envs.robosuite import SimEnv
from sim_workers.envs.stage_names import LADDERS, NO_STAGE
from sim_workers.rollout.staged_outcome import Place

_log = logging.getLogger(__name__)

REACHED_M = 0.05
"""Distance of the point between the fingers to the middle of the object, or to its handle, from which it is
reached."""
LIFTED_M = 0.04
"""Height of the middle of an object above where it lay, from which it is lifted."""
TURNED_RAD = 1.2
"""Angle of the door's lever at which its latch is free."""


class StageWatch:
    """Reader of the furthest stage that any object has come to since `begin`."""

    def __init__(self, env: SimEnv) -> None:
        """env: of a task in LADDERS."""
        self._env = env._env
        self._ladder = LADDERS[env.task]
        self._task, self._level, self._readable = env.task, 0, False
        self.place: Place | None = None
        """Start of the object; None with several objects."""

    def begin(self) -> None:
        """Forget what was seen and read where objects are. Called after a reset. With a robot or an object
        that lacks what is read, the episode has no stage, which is logged.
        """
        self._level, self._readable, self.place = 0, False, None
        try:
            self._find()
            self._readable = True
        except Exception:  # a stage must not cost an episode
            _log.warning("%s: its stages cannot be read", self._task, exc_info=True)

    def _find(self) -> None:
        env = self._env
        model, self._data = env.sim.model, env.sim.data._data  # a hard reset makes new ones
        (robot,) = env.robots
        grippers = robot.gripper.values() if isinstance(robot.gripper, dict) else (robot.gripper,)
        self._hands = [model.site_name2id(gripper.important_sites["grip_site"]) for gripper in grippers]
        self._pads = [
            [
                frozenset(
                    model.geom_name2id(name)
                    for name in gripper.important_geoms.get(f"{side}_fingerpad") or ()
                )
                for side in ("left", "right")
            ]
            for gripper in grippers
        ]
        self._door = hasattr(env, "door")
        things = [env.door] if self._door else _things(env)
        bodies = [thing.door_body if self._door else thing.root_body for thing in things]
        self._bodies = [model.body_name2id(body) for body in bodies]
        self._handles = [
            model.site_name2id(thing.important_sites["handle"]) if "handle" in thing.important_sites else None
            for thing in things
        ]
        self._geoms = [frozenset(map(model.geom_name2id, thing.contact_geoms)) for thing in things]
        self._heights = [float(self._data.xpos[body][2]) for body in self._bodies]
        if len(things) == 1:
            x, y, _ = self._data.xpos[self._bodies[0]].tolist()
            self.place = Place(x, y)

    def look(self) -> None:
        """Read the current state. Called after control steps."""
        if not self._readable:
            return
        if self._level < 1 and self._reached():
            self._level = 1
        if self._door:
            if self._level < 2 and abs(self._data.qpos[self._env.handle_qpos_addr]) > TURNED_RAD:
                self._level = 2
            return
        if self._level < 2 and self._grasped():
            self._level = 2
        if self._level < 3 < len(self._ladder) and self._lifted():
            self._level = 3

    def stage(self, succeeded: bool) -> str | None:
        """Return the furthest stage; None if stages cannot be read. succeeded: whether the task was done in
        any step.
        """
        if not self._readable:
            return None
        return self._ladder[-1] if succeeded else (NO_STAGE, *self._ladder)[self._level]

    def _reached(self) -> bool:
        data = self._data
        for body, handle in zip(self._bodies, self._handles, strict=True):
            target = data.xpos[body] if handle is None else data.site_xpos[handle]
            for hand in self._hands:
                away: npt.NDArray[np.float64] = data.site_xpos[hand] - target
                if away @ away < REACHED_M**2:
                    return True
        return False

    def _grasped(self) -> bool:
        """Return whether both fingers of a hand touch an object, as robosuite's `_check_grasp` does."""
        touching = [(int(a), int(b)) for a, b in self._data.contact.geom]
        pairs = touching + [(b, a) for a, b in touching]
        return any(
            all(any(a in pad and b in geoms for a, b in pairs) for pad in hand)
            for hand in self._pads
            for geoms in self._geoms
        )

    def _lifted(self) -> bool:
        return any(
            self._data.xpos[body][2] > height + LIFTED_M
            for body, height in zip(self._bodies, self._heights, strict=True)
        )


def _things(env: Any) -> list[Any]:
    """Return the objects of a robosuite environment that its task wants moved."""
    for name in ("cube", "cubeA"):
        if hasattr(env, name):
            return [getattr(env, name)]
    things = list(env.nuts if hasattr(env, "nuts") else env.objects)
    if env.single_object_mode == 0:
        return things
    return [thing for thing in things if thing.name == env.obj_to_use]
