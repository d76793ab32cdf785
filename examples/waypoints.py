"""Policy from a plain function: without cameras, it moves to the usual place of Lift's red cube, closes its
fingers and rises.

    demoscale score examples.waypoints:make --task Lift --episodes 20

A minimal example of a policy that can be scored. The cube lies within 3 cm of the middle, turned at random,
so the policy grasps it sometimes.
"""

from collections.abc import Sequence

import numpy as np

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.envs.robosuite import contract

MIDDLE = np.array([0.0, 0.0])  # middle of the table (m)
LOW = 0.825  # height of the fingers around the cube (m)
METRES_PER_UNIT = 0.05
STEPS = 6  # control steps per chunk: enough for the fingers to close


def waypoint(observation: Observation) -> ActionChunk:
    """Return the next six actions (6, 7) from the hand's state: proprio is position (3), quaternion (4),
    fingers (2).
    """
    hand, opening = observation.proprio[:3], observation.proprio[7] - observation.proprio[8]
    way, grip = np.zeros(3), -1.0
    # the height matters because the fingers are half open at the start too
    holds = opening < 0.06 and hand[2] < 0.93
    if holds or hand[2] < LOW + 0.008:
        grip = 1.0
        way[2] = 0.1 if holds else 0.0
    else:
        way[:2] = MIDDLE - hand[:2]
        way[2] = LOW - hand[2] if np.hypot(*way[:2]) < 0.015 else 0.0
    action = np.array([*way / METRES_PER_UNIT / (1 if holds else 3), 0.0, 0.0, 0.0, grip])
    return ActionChunk(np.tile(np.clip(action, -1, 1).astype(np.float32), (STEPS, 1)), STEPS)


class Waypoints:
    """`Policy` around the function: its contract, and one answer per observation."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation."""
        return [waypoint(observation) for observation in observations]


def make() -> Waypoints:
    """Return the policy, without cameras: nothing is rendered, so an episode takes a second."""
    return Waypoints(contract((), (64, 64), "fast"))
