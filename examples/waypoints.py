"""A policy as a plain function: it never looks, but goes where the red cube of Lift usually lies, closes its fingers and rises.

    python -m jobs.score examples.waypoints:make --task Lift --episodes 20

It shows the smallest thing that can be scored. The cube lies within 3 cm of the middle, turned at random, so it is caught sometimes.
"""

from collections.abc import Sequence

import numpy as np

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.envs.robosuite import contract

MIDDLE = np.array([0.0, 0.0])  # of the table (m)
LOW = 0.825  # the fingers around the cube (m)
METRES_PER_UNIT = 0.05
STEPS = 6  # of a chunk: long enough for the fingers to close


def waypoint(observation: Observation) -> ActionChunk:
    """The next six steps (6, 7), from where the hand and its fingers are: proprio is position (3), quaternion (4), fingers (2)."""
    hand, opening = observation.proprio[:3], observation.proprio[7] - observation.proprio[8]
    way, grip = np.zeros(3), -1.0
    holds = opening < 0.06 and hand[2] < 0.93  # at the start, up there, the fingers are half open too
    if holds or hand[2] < LOW + 0.008:
        grip = 1.0
        way[2] = 0.1 if holds else 0.0
    else:
        way[:2] = MIDDLE - hand[:2]
        way[2] = LOW - hand[2] if np.hypot(*way[:2]) < 0.015 else 0.0
    action = np.array([*way / METRES_PER_UNIT / (1 if holds else 3), 0.0, 0.0, 0.0, grip])
    return ActionChunk(np.tile(np.clip(action, -1, 1).astype(np.float32), (STEPS, 1)), STEPS)


class Waypoints:
    """What makes a policy of a function: the conventions it keeps, and an answer per observation."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [waypoint(observation) for observation in observations]


def make() -> Waypoints:
    """Without cameras nothing is rendered, so an episode takes a second."""
    return Waypoints(contract((), (64, 64), "fast"))
